"""Generated pages say what the code says, and nothing in the documentation names what does not exist."""

from __future__ import annotations

from remediator.events import Kind
from remediator.model import RunState
from remediator.registry import Registry
from scripts.reference import BLOCKS, ROOT, STATES, current, filled


def test_generated_files_are_current() -> None:
    """Whoever changes the catalogue, lifecycle, guards, metrics or events runs `python -m scripts.reference` and commits the result."""
    stale = [str(path.relative_to(ROOT)) for path, text in current().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run: python -m scripts.reference"


def test_every_block_has_its_page() -> None:
    """What can be generated is shown somewhere: a renamed page would otherwise go stale unnoticed."""
    pages = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    assert {name for name in BLOCKS if f"<!-- generated: {name} -->" not in pages} == set()


def test_filling_a_page_twice_changes_nothing() -> None:
    """Generating is idempotent, and prose around the block stays."""
    once = filled("before\n<!-- generated: guards -->\nSTALE\n<!-- end -->\nafter\n")
    assert "STALE" not in once
    assert "`kill_switch`" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert filled(once) == once


def test_every_state_is_explained() -> None:
    """A new state needs words for people."""
    assert set(STATES) == set(RunState)


def test_every_event_names_its_data() -> None:
    """Readers of the audit trail learn from the page what each kind holds; only the daemon's end holds nothing."""
    silent = [line.split("`")[1] for line in BLOCKS["events"]().splitlines()[2:] if line.rstrip().endswith("|  |")]
    assert silent == [Kind.DAEMON_STOPPED]


def test_the_catalogue_shows_everything() -> None:
    """Each action, check and kind of connection has its section."""
    page = BLOCKS["catalogue"]()
    registry = Registry()
    for name in (*registry.action_names(), *registry.check_names()):
        assert f" `{name}`\n" in page
    for kind in registry.connection_kinds():
        assert f"### Connection `kind: {kind}`\n" in page
