"""The catalogue: found by name, imported late, closed to impostors, robust against foreign code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remediator.action import Action, Check, Connection
from remediator.registry import Registry, describe_action, describe_check

GOOD = '''
"""A system of one's own."""
from __future__ import annotations
from collections.abc import Mapping
from typing import Any
from remediator.action import Action, Check, Connection, Context, Fact, FactType, Params, Permission, PermissionKind, Provider
from remediator.model import Plan, Receipt, Repeat, Risk, Verdict, Health

class LampConnection(Connection):
    """A lamp."""
    host: str

class SwitchParams(Params):
    """What to switch."""
    lamp: str
    on: bool = True

class Switch(Action[SwitchParams]):
    """Switches a lamp."""
    name = "{system}.switch"
    Params = SwitchParams
    connection = LampConnection
    risk = Risk.LOW
    repeat = Repeat.NEVER
    reversible = False
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "/lamp", "to switch it"),)
    example = {{"lamp": "hall"}}
    async def plan(self, params: SwitchParams, ctx: Context) -> Plan: ...
    async def apply(self, plan: Plan, ctx: Context) -> Receipt: ...
    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict: ...

class Glow(Check[SwitchParams]):
    """Tells whether a lamp glows."""
    name = "{system}.glow"
    Params = SwitchParams
    facts = {{"on": Fact(FactType.BOOL, "whether it glows")}}
    permissions = ()
    example = {{"lamp": "hall"}}
    async def run(self, params: SwitchParams, ctx: Context) -> Mapping[str, Any]:
        return {{"on": True}}

PROVIDER = Provider("{system}", actions=(Switch,), checks=(Glow,), connections={{"lamp-kind": LampConnection}})
'''


def write(directory: Path, name: str, text: str) -> Path:
    """Write a module that only its owner may change."""
    path = directory / f"{name}.py"
    path.write_text(text)
    path.chmod(0o644)
    directory.chmod(0o755)
    return path


def good(system: str) -> str:
    """Return a module that offers `system`."""
    return GOOD.format(system=system)


def test_names_lead_to_classes_of_ones_own_directory(tmp_path: Path) -> None:
    """A directory of the settings adds actions, checks and kinds of connections."""
    write(tmp_path, "lamps", good("lamps"))
    registry = Registry([tmp_path])
    action, check = registry.action("lamps.switch"), registry.check("lamps.glow")
    assert action is not None
    assert issubclass(action, Action)
    assert check is not None
    assert issubclass(check, Check)
    kind = registry.connection_kind("lamp-kind")
    assert kind is not None
    assert issubclass(kind, Connection)
    assert registry.action_names("lamps") == ("lamps.switch",)
    assert registry.check_names("lamps") == ("lamps.glow",)
    assert registry.problems == ()


@pytest.mark.parametrize("name", ["lamps.glow", "lamps.absent", "lamps", "", ".switch", "nowhere.switch", "os.system", "lamps.switch.x"])
def test_unknown_action_is_none(tmp_path: Path, name: str) -> None:
    """A check is no action, and names lead nowhere but into the catalogue."""
    write(tmp_path, "lamps", good("lamps"))
    assert Registry([tmp_path]).action(name) is None


def test_package_in_a_directory_is_found(tmp_path: Path) -> None:
    """A system may be a package; private names and other files are left alone."""
    (tmp_path / "lamps").mkdir(mode=0o755)
    write(tmp_path / "lamps", "__init__", good("lamps"))
    write(tmp_path, "_private", "raise RuntimeError")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    registry = Registry([tmp_path])
    assert registry.action("lamps.switch") is not None
    assert {"_private", "notes", "empty"}.isdisjoint(registry.systems())


def test_only_the_system_asked_for_is_imported(tmp_path: Path) -> None:
    """Starting with three rules must not import every system, let alone SDKs (a fresh process tells)."""
    write(tmp_path, "lamps", good("lamps"))
    write(tmp_path, "broken", "raise RuntimeError('imported')")
    code = (
        "import sys, pathlib; from remediator.registry import Registry\n"
        f"registry = Registry([pathlib.Path({str(tmp_path)!r})])\n"
        "assert len(registry.systems()) > 3, registry.systems()\n"
        "assert registry.action('lamps.switch') and not registry.problems\n"
        "loaded = [name for name in sys.modules if name.startswith('actions.')]\n"
        "assert not loaded, loaded\n"
        "registry.catalogue()\n"
        "sdks = {'boto3', 'botocore', 'kubernetes', 'asyncpg', 'redis', 'pymongo'} & set(sys.modules)\n"
        "assert not sdks, sdks\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("class Odd(Exception): pass\nraise Odd('odd')", "Odd: odd"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import there_is_no_such_module", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "no PROVIDER"),
        ("PROVIDER = 5", "no PROVIDER"),
        (good("other"), "for 'other'"),
        (good("bad").replace('name = "bad.switch"', 'name = "kubernetes.scale"'), "'kubernetes.scale' is not called bad."),
        (good("bad").replace("actions=(Switch,)", "actions=(Switch, Switch)"), "bad.switch is offered twice"),
        (good("bad").replace("actions=(Switch,)", "actions=(Glow,)"), "no remediator.action.Action"),
        (good("bad").replace("    risk = Risk.LOW\n", ""), "Switch lacks risk"),
        (good("bad").replace("    async def apply", "    async def other"), "Switch lacks apply"),
        (good("bad").replace('"lamp-kind": LampConnection', '"lamp-kind": SwitchParams'), "no remediator.action.Connection"),
    ],
)
def test_broken_module_is_named_and_the_rest_works(tmp_path: Path, text: str, words: str) -> None:
    """Whatever foreign code does at import, the daemon says what and goes on."""
    write(tmp_path, "bad", text)
    write(tmp_path, "lamps", good("lamps"))
    registry = Registry([tmp_path])
    assert registry.action("bad.switch") is None
    assert registry.action("lamps.switch") is not None
    assert len(registry.problems) == 1
    assert "'bad'" in registry.problems[0]
    assert words in registry.problems[0]
    assert "bad" not in {provider.system for provider in registry.catalogue()}
    assert len(registry.problems) == 1


def test_nobody_replaces_a_built_in_system(tmp_path: Path) -> None:
    """A module called like a built-in system is refused: no other `redis.flush_db` slips under a rule."""
    builtin = Registry().systems()[0]
    write(tmp_path, builtin, "raise RuntimeError('imported')")
    registry = Registry([tmp_path])
    registry.catalogue()
    assert [problem for problem in registry.problems if "exists already" in problem]
    assert not [problem for problem in registry.problems if "imported" in problem]


def test_first_directory_wins(tmp_path: Path) -> None:
    """Two directories offer one system: the first is used, the second named."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "lamps", good("lamps"))
    registry = Registry([tmp_path / "one", tmp_path / "two"])
    assert registry.action("lamps.switch") is not None
    assert str(tmp_path / "two") in registry.problems[0]


def test_entry_point_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package offers a system through the group `remediator.actions`, by module or by provider."""
    write(tmp_path, "lamp_package", good("lamps") + "\n" + "OTHER = Provider('other')\n")
    info = tmp_path / "lamp_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lamp-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[remediator.actions]\nlamps = lamp_package\nother = lamp_package:OTHER\ngone = lamp_package:GONE\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry()
    assert registry.action("lamps.switch") is not None
    assert {"lamps", "other"} <= {provider.system for provider in registry.catalogue()}
    assert [problem for problem in registry.problems if "'gone'" in problem]


def test_module_that_everybody_may_write_is_not_run(tmp_path: Path) -> None:
    """Code with our credentials must not be anybody's to change."""
    path = write(tmp_path, "lamps", good("lamps"))
    path.chmod(0o646)
    registry = Registry([tmp_path])
    assert registry.action("lamps.switch") is None
    assert "written by everybody" in registry.problems[0]


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """A directory that is not there is a problem to show, not a crash."""
    registry = Registry([tmp_path / "absent"])
    assert registry.systems()
    assert "absent can't be read" in registry.problems[0]


def test_description_is_plain_json(tmp_path: Path) -> None:
    """What `remediator actions --json` prints has everything a rule's author needs."""
    write(tmp_path, "lamps", good("lamps"))
    registry = Registry([tmp_path])
    action, check = registry.action("lamps.switch"), registry.check("lamps.glow")
    assert action is not None
    assert check is not None
    described = json.loads(json.dumps(describe_action(action)))
    assert described["permissions"] == [{"kind": "http", "verbs": ["POST"], "resource": "/lamp", "why": "to switch it"}]
    assert (described["name"], described["risk"], described["repeat"], described["reversible"]) == ("lamps.switch", "low", "never", False)
    assert described["params"]["required"] == ["lamp"]
    assert described["description"] == "Switches a lamp."
    assert json.loads(json.dumps(describe_check(check)))["facts"] == {
        "on": {"type": "bool", "description": "whether it glows", "evidence": False}
    }


def test_later_parts_are_imported_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are known without importing; what no rule uses costs nothing; the catalogue has everything."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, "late_parts", good("lamps").partition("PROVIDER")[0])
    offered = (
        'PROVIDER = Provider("lamps", later_actions={"lamps.switch": "late_parts:Switch"}, later_checks={"lamps.glow": "late_parts:Glow"})'
    )
    (tmp_path / "directory").mkdir()
    write(tmp_path / "directory", "lamps", f"from remediator.action import Provider\n{offered}\n")
    registry = Registry([tmp_path / "directory"])
    assert (registry.action_names("lamps"), registry.check_names("lamps")) == (("lamps.switch",), ("lamps.glow",))
    assert registry.action("lamps.other") is None
    assert "late_parts" not in sys.modules
    action = registry.action("lamps.switch")
    assert action is not None
    assert action is registry.action("lamps.switch")
    assert registry.action("lamps.glow") is None
    (lamps,) = [provider for provider in registry.catalogue() if provider.system == "lamps"]
    assert ([one.name for one in lamps.actions], [one.name for one in lamps.checks]) == (["lamps.switch"], ["lamps.glow"])
    assert not registry.problems


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ('later_actions={"lamps.switch": "no_such_module:Switch"}', "no_such_module"),
        ('later_actions={"lamps.switch": "json:loads"}', "no remediator.action.Action"),
        ('later_actions={"kubernetes.scale": "json:loads"}', "is not called lamps."),
        ('later_checks={"lamps.look": "actions.redis.ping:Ping"}', "is not called lamps."),
    ],
)
def test_later_part_that_is_not_what_it_says_is_named(tmp_path: Path, offered: str, words: str) -> None:
    """The system's other parts, and all other systems, work."""
    write(tmp_path, "lamps", f'from remediator.action import Provider\nPROVIDER = Provider("lamps", {offered})\n')
    registry = Registry([tmp_path])
    assert registry.action("lamps.switch") is None
    assert registry.check("lamps.look") is None
    assert registry.action("kubernetes.scale") is not None
    registry.catalogue()
    assert len(registry.problems) == 1
    assert words in registry.problems[0]
