"""What the pages show exists: links lead somewhere, commands are known to the program, YAML is taken by what it is for."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from remediator.cli.program import build
from remediator.registry import Registry
from remediator.rules.compile import compile_ruleset
from remediator.rules.packs import PackSource
from remediator.settings import Settings, load_settings
from tests.packaging.image import ROOT
from tests.packaging.test_chart import render
from tests.servers.process import find_binary

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FRAGMENTS = {"write-a-rule.md", "actions.md"}
"""Pages that show parts of files; these are tested where they belong."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_CALL = re.compile(r"(?:^|-- |\| |; |until |\$\(|&& )remediator ([a-z]+)([^|;&>\n]*)", re.MULTILINE)

IDS = [str(path.relative_to(ROOT)) for path in PAGES]


def code(text: str) -> Iterator[str]:
    """Give a page's code: fenced blocks but for YAML and JSON, and spans."""
    yield from (body for language, body in _FENCE.findall(text) if language in ("", "sh"))
    yield from re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist, and headings in them."""
    lost = []
    for target, anchor in _LINK.findall(_FENCE.sub("", page.read_text())):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            lost.append(f"{target}#{anchor}")
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    """Each `remediator COMMAND --option` in code is one the program knows."""
    program = typer.main.get_command(build())
    wrong = [
        f"remediator {name}{rest}"
        for text in code(page.read_text())
        for name, rest in _CALL.findall(text)
        if not known(program, name, rest)
    ]
    assert wrong == []


def known(program: Any, name: str, rest: str) -> bool:
    """Tell whether the program has this command with these options."""
    command = program.commands.get(name)
    words = shlex.split(rest.replace("…", " ").replace("'", " "), comments=True)
    if command is not None and hasattr(command, "commands"):
        command = command.commands.get(words.pop(0)) if words else command
    options = {option for parameter in getattr(command, "params", ()) for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.split("=")[0] for word in words if word.startswith("-") and word not in {"-", "--help"}}
    return command is not None and asked <= options


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_exist(page: Path) -> None:
    """Each `make TARGET` in code is one of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in code(page.read_text()) for name in re.findall(r"^make ([a-z]+)", text, re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_yaml_is_taken_by_what_it_is_for(page: Path, tmp_path: Path) -> None:
    """Rules compile, settings load, Alertmanager's own tool takes its configuration, and the chart renders its values."""
    for language, body in _FENCE.findall(page.read_text()):
        if language != "yaml" or page.name in FRAGMENTS:
            continue
        keys = set(yaml.safe_load(body))
        if keys == {"rules"}:
            assert compile_ruleset([PackSource("shown", {}, {"shown.yaml": body.encode()})], Registry()).rules
        elif keys <= {"route", "receivers", "inhibit_rules"}:
            check_alertmanager(body, tmp_path)
        elif keys <= set(Settings.model_fields):
            (tmp_path / "remediator.yaml").write_text(body)
            assert load_settings(tmp_path / "remediator.yaml", {})
        elif "image" in keys:
            assert len(render(yaml.safe_load(body))) > 4
        else:
            pytest.fail(f"nobody knows what this is: {body}")


def check_alertmanager(body: str, directory: Path) -> None:
    """Have Alertmanager's own tool check a configuration; a missing route is filled in."""
    config = yaml.safe_load(body)
    config.setdefault("route", {"receiver": config["receivers"][0]["name"]})
    path = directory / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [find_binary("amtool", "prometheus-alertmanager"), "check-config", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_settings_are_valid() -> None:
    """The file to start from has no fault, names only what exists, and is in dry run."""
    command = [ROOT / ".venv/bin/remediator", "check", ROOT / "examples/remediator.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "No problems.\n")
    loaded = load_settings(ROOT / "examples/remediator.yaml", {})
    assert loaded.dry_run
    assert loaded.warnings == ()


def test_the_readme_names_tests_that_exist() -> None:
    """A promise is only worth its test."""
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`(tests/[\w/.]*|remediator/\w+\.py)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name


def test_the_first_screen_says_how_to_see_it() -> None:
    """Whoever opens the README finds problem, demo and test before scrolling."""
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:14])
    assert "make demo" in head
    assert "make test" in head


def test_reasons_are_quoted_as_the_daemon_says_them() -> None:
    """Whoever searches the page for what the timeline says finds it."""
    page = (ROOT / "docs/how-to/approve-and-stop.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "remediator").rglob("*.py"))
    rows = re.findall(r"^\| (`.*?) \|", page.partition("| it says |")[2].partition("## ")[0], re.MULTILINE)
    quoted = [part.strip() for row in rows for text in re.findall(r"`([^`]+)`", row) for part in text.split("…") if len(part) > 4]
    assert len(quoted) >= 7
    assert [part for part in quoted if part not in source] == []
