"""Commands that need no daemon."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from remediator.cli.program import COMMANDS
from remediator.events import Kind
from remediator.settings import load_settings
from remediator.timeline import TOLD, explain
from tests.cli.conftest import ROOT, Commands

PACK = "name: mine\n"
RULES = """\
rules:
  - name: site-down
    match: ['alertname = "SiteDown"']
    remedies: []
"""


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Write a pack with one rule that only escalates."""
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "pack.yaml").write_text(PACK)
    (directory / "site-down.yaml").write_text(RULES)
    return directory


@pytest.mark.parametrize("form", ["actions", "checks"])
async def test_catalogue_for_programs(alone: Commands, form: str) -> None:
    """`--json` is an array of objects which hold all that is needed to write a rule."""
    done = await alone(form, "--json")
    assert done.code == 0, done.error
    found = json.loads(done.out)
    keys = {"name", "description", "permissions", "params", "example"} | ({"risk", "reversible"} if form == "actions" else {"facts"})
    assert found
    for one in found:
        assert keys <= one.keys()
        assert one["params"]["type"] == "object"


async def test_catalogue_for_people(alone: Commands) -> None:
    """The list has one line each; a name shows one in full; an unknown name is exit code 1."""
    name = json.loads((await alone("actions", "--json")).out)[0]["name"]
    assert name in (await alone("actions")).out
    shown = await alone("actions", name)
    assert "example:" in shown.out
    assert (await alone("actions", "none.none")).code == 1


async def test_guards_and_schema(alone: Commands) -> None:
    """Guards are listed with default, moments, and who may set them; a name shows one in full; the schema is JSON Schema."""
    found = json.loads((await alone("guards", "--json")).out)
    assert found[0].keys() == {"name", "description", "default", "asked", "rule", "limit"}
    assert all(one["default"] and one["asked"] for one in found)
    listed, one = (await alone("guards")).out, (await alone("guards", "cooldown")).out
    assert all(guard["name"] in listed for guard in found)
    assert "guards.cooldown" in one
    assert "limits.min_cooldown; the stricter of the two wins" in one
    assert (await alone("guards", "luck")).code == 1
    assert json.loads((await alone("schema")).out)["$schema"].startswith("https://json-schema.org/")


async def test_check_accepts_a_good_pack(alone: Commands, pack: Path) -> None:
    """A pack may be named by its directory, by a file in it, or by a directory above."""
    for path in (pack, pack / "site-down.yaml", pack.parent):
        done = await alone("check", str(path))
        assert done.code == 0, done.out + done.error


async def test_check_prints_file_line_and_column(alone: Commands, pack: Path) -> None:
    """Every problem is a line that editors understand; exit code 1."""
    (pack / "site-down.yaml").write_text(RULES.replace("remedies", "remedeis"))
    done = await alone("check", str(pack))
    assert done.code == 1
    assert re.search(rf"^{re.escape(str(pack))}/site-down\.yaml:4:\d+: .*remedeis", done.out, re.MULTILINE)
    found = json.loads((await alone("check", "--json", str(pack))).out)
    assert {"file", "line", "column", "message", "severity"} == found[0].keys()


async def test_check_takes_rules_without_a_pack_file(alone: Commands, tmp_path: Path) -> None:
    """A head is optional for the daemon, so it is for the check: of a directory, and of a file by its name."""
    file = tmp_path / "site-down.yaml"
    file.write_text(RULES.replace("remedies", "remedeis"))
    for path in (tmp_path, file):
        done = await alone("check", str(path))
        assert done.code == 1
        assert f"{file}:4:" in done.out


async def test_check_settings(alone: Commands, tmp_path: Path, pack: Path) -> None:
    """Without a path the settings file is checked with all its packs."""
    settings = tmp_path / "remediator.yaml"
    settings.write_text(f"packs: {{mine: {{path: {pack}}}}}\n")
    assert (await alone("check", "--config", str(settings))).code == 0
    settings.write_text("dry_rum: true\n")
    done = await alone("check", "--config", str(settings))
    assert done.code == 1
    assert f"{settings}:1:1:" in done.out
    assert (await alone("check", str(tmp_path / "none"))).code == 2


async def test_rehearse_offline_touches_no_store(alone: Commands, tmp_path: Path, pack: Path) -> None:
    """With --config no daemon is asked, and the daemon's own store is not even created."""
    store = tmp_path / "state.sqlite"
    settings = tmp_path / "remediator.yaml"
    settings.write_text(f"store: {{url: 'sqlite://{store}'}}\npacks: {{mine: {{path: {pack}}}}}\n")
    done = await alone("rehearse", "-", "--json", "--config", str(settings), text=b'{"labels": {"alertname": "SiteDown"}}')
    assert done.code == 0, done.error
    assert json.loads(done.out)[0]["rule"] == "site-down"
    assert not store.exists()


PERMISSIONS = """\
rules:
  - name: site-down
    match: ['alertname = "SiteDown"']
    checks: {db: {postgres.connections: {connection: orders}}}
    remedies:
      - name: switch off
        steps: [{http.request: {connection: flags, method: PUT, path: /flags/checkout, json: {enabled: false}}}]
        verify: {within: 5m, hold: 30s}
"""
CONNECTIONS = """\
connections:
  orders: {kind: postgres, host: 127.0.0.1, port: 1, user: remediator, database: shop, ssl: disable}
  flags: {kind: http, base_url: 'https://flags.example.com'}
"""


@pytest.fixture
def needy(tmp_path: Path, pack: Path) -> Path:
    """Write settings whose rules need rights on a database and of a gateway."""
    (pack / "site-down.yaml").write_text(PERMISSIONS)
    settings = tmp_path / "remediator.yaml"
    settings.write_text(f"{CONNECTIONS}packs: {{mine: {{path: {pack}}}}}\n")
    return settings


async def test_permissions_are_printed_for_each_systems_owner(alone: Commands, needy: Path, tmp_path: Path) -> None:
    """As text under a comment, as JSON, or as files; for all connections or those that are named."""
    done = await alone("permissions", "--config", str(needy))
    assert done.code == 0, done.error
    assert 'GRANT pg_read_all_stats TO "remediator";' in done.out
    assert "# flags.http\nPUT /flags/checkout\n" in done.out
    found = json.loads((await alone("permissions", "flags", "--json", "--config", str(needy))).out)
    assert found == {"flags.http": "PUT /flags/checkout\n"}
    done = await alone("permissions", "--output", str(tmp_path / "out"), "--config", str(needy))
    assert done.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["flags.http", "orders.sql"]


async def test_permissions_that_can_not_be_checked_are_no_success(alone: Commands, needy: Path) -> None:
    """Exit code 3 when a system does not answer; what can't be asked by its nature is told, and no fault."""
    done = await alone("permissions", "--check", "--json", "--config", str(needy))
    assert done.code == 3
    assert "could not be checked" in done.error
    found = json.loads(done.out)
    assert {right["resource"] for right in found["orders"]["unknown"]} >= {"pg_read_all_stats"}
    assert found["flags"]["notes"] == ["not checked: this kind of system can't be asked what credentials may do"]
    assert (await alone("permissions", "flags", "--check", "--config", str(needy))).code == 0


async def test_permissions_used_wrongly(alone: Commands, needy: Path) -> None:
    """Exit code 2, and what is wrong."""
    for arguments, said in (
        (("nope",), "there is no connection 'nope'; there are flags, orders"),
        (("--account", "Remediator"), "write it as NAMESPACE/NAME"),
        (("--check", "--output", "x"), "either --check or --output"),
    ):
        done = await alone("permissions", *arguments, "--config", str(needy))
        assert done.code == 2
        assert said in done.error


async def test_token_is_shown_once_with_its_hash(alone: Commands, tmp_path: Path) -> None:
    """The settings get the hash only, and they load."""
    found = json.loads((await alone("token", "bob", "--role", "responder", "--json")).out)
    assert hashlib.sha256(found["token"].encode()).hexdigest() == found["token_sha256"]
    shown = (await alone("token", "bob", "--role", "responder")).out
    token, *rest = shown.splitlines()
    lines = [line.removeprefix("# ") for line in rest if line.startswith("#   ")]
    settings = tmp_path / "remediator.yaml"
    settings.write_text("identities:\n" + "\n".join(lines) + "\n")
    identity = load_settings(settings, {}).identities["bob"]
    assert identity.token_sha256 == (hashlib.sha256(token.encode()).hexdigest(),)
    assert (await alone("token", "bob", "--role", "king")).code == 2


async def test_serve_says_what_is_wrong(alone: Commands, tmp_path: Path) -> None:
    """A daemon that can't start says why in a line, with exit code 1."""
    settings = tmp_path / "remediator.yaml"
    settings.write_text("dry_rum: true\n")
    done = await alone("serve", "--config", str(settings))
    assert done.code == 1
    assert "dry_rum" in done.error
    assert (await alone("serve", "--config", str(tmp_path / "none.yaml"))).code == 1


def test_daemon_imports_no_command_line() -> None:
    """What `serve` imports holds neither typer nor the clouds' SDKs: it starts fast."""
    code = (
        "import sys; from remediator.cli import main; import remediator.cli.serve, remediator.app.serving, remediator.web; "
        "print([name for name in ('typer', 'remediator.cli.program', 'boto3', 'kubernetes', 'asyncpg', 'redis') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_kind_of_event_is_told() -> None:
    """No event of the daemon is shown raw, whatever keys its data has; an unknown kind still says something."""
    assert TOLD.keys() == set(Kind)
    for kind in Kind:
        assert explain(kind, {})
        assert explain(kind, {"checks": [], "steps": None, "conditions": None, "seconds": "x"})
    assert explain("moon.landed", {"where": "here"}) == "moon landed, where here"


def test_every_command_says_what_it_does() -> None:
    """Help is never empty."""
    for command in COMMANDS:
        assert (command.__doc__ or "").strip(), command.__name__
