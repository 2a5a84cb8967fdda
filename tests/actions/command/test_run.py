"""`command.run`: what may be run, in which surroundings, and what its end means."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actions.command.client import still_runs
from actions.command.connection import CommandConnection
from actions.command.host import find_program, find_user
from actions.command.run import Run
from remediator.action import Settled
from remediator.errors import NotReversible, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Health, Plan, Receipt, canonical, to_json
from remediator.testing import LocalContext
from tests.actions.command.conftest import Write, connection, context, replace_program
from tests.servers.ports import eventually

ROOT = Path(__file__).parents[3]


async def planned(ctx: LocalContext, *argv: str, **wish: Any) -> Plan:
    """Plan one command."""
    return await Run().plan(Run.Params.model_validate({"connection": "here", "argv": list(argv), **wish}), ctx)


async def ran(ctx: LocalContext, *argv: str, **wish: Any) -> Receipt:
    """Plan and run one command."""
    try:
        return await Run().apply(await planned(ctx, *argv, **wish), ctx)
    finally:
        await ctx.aclose()


def printed(receipt: Receipt, stream: str = "stdout") -> str:
    """Return what was kept of a stream."""
    text: str = receipt.data["evidence"][stream]
    return text


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def started(path: Path) -> list[int]:
    """Wait until processes wrote their ids into a file, and return them."""

    def words() -> list[str]:
        return path.read_text().split() if path.exists() else []

    async def there() -> bool:
        return words()[-1:] == ["end"]

    await eventually(there, what="the command is under way", within=10)
    return [int(word) for word in words()[:-1]]


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def gone(*pids: int) -> None:
    """Wait until none of some processes runs."""

    async def none_left() -> bool:
        return not any(alive(pid) for pid in pids)

    await eventually(none_left, what=f"{pids} are gone", within=10)


# --- what may be run -----------------------------------------------------------------------------------------------------


async def test_value_stays_one_element_and_meets_no_shell() -> None:
    """Whatever an alert says is one argument."""
    value = "a b; touch /tmp/x $(id) `id` * \u00fc"
    receipt = await ran(context("/usr/bin/printf"), "/usr/bin/printf", "[%s]", "{v}", args={"v": value})
    assert printed(receipt) == f"[{value}]"
    assert receipt.data["exit_code"] == 0


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"argv": ["/bin/ls", "{v}"], "args": {"v": "-la"}}, "would be taken for an option"),
        ({"argv": ["/bin/ls", "x{v}"], "args": {"v": "a"}}, "has no place"),
        ({"argv": ["/bin/sh", "-c", "{v}"], "args": {"v": "id"}}, "may run its arguments as code"),
        ({"argv": ["{v}"], "args": {"v": "/bin/ls"}}, "must be a constant"),
        ({"argv": ["/bin/ls"], "repeat": "detectable"}, "belong together"),
        ({"argv": ["/bin/ls"], "success": [0, 1], "unchanged": [1]}, "can't be in success and in unchanged"),
        ({"argv": ["/bin/ls"], "options": ["v"]}, "there is no args.v"),
        ({"argv": ["/bin/ls"], "touches": ["-x"]}, "should match pattern"),
    ],
)
def test_doubtful_command_is_refused(wish: dict[str, Any], why: str) -> None:
    """Values never become options, code, programs or parts of elements."""
    with pytest.raises(ValidationError, match=why):
        Run.Params.model_validate({"connection": "here", **wish})


async def test_value_may_begin_with_a_dash_where_the_rule_says_so() -> None:
    """After `--`, or by name."""
    ctx = context("/bin/echo")
    assert printed(await ran(ctx, "/bin/echo", "--", "{v}", args={"v": "-n"})) == "-- -n\n"
    assert printed(await ran(ctx, "/bin/echo", "{v}", "a", args={"v": "-n"}, options=["v"])) == "a"


async def test_rule_runs_only_what_the_operator_listed() -> None:
    """Neither another program nor other arguments, in any of a rule's commands."""
    ctx = context(("/bin/echo", "a*"), ("/bin/true",))
    for argv in (
        ["/bin/ls"],
        ["/bin/echo", "b"],
        ["/bin/echo", "a", "b"],
        ["/bin/true", "x"],
        ["/bin/../bin/true"],
        ["true"],
        ["/bin/echo"],
    ):
        with pytest.raises(PlanRefused, match="does not allow"):
            await planned(ctx, *argv)
    with pytest.raises(PlanRefused, match="does not allow"):
        await planned(ctx, "/bin/true", verify=["/bin/echo", "b"])
    assert (await planned(ctx, "/bin/echo", "ab")).intent["argv"] == ["/bin/echo", "ab"]


@pytest.mark.parametrize("allow", [["ls"], ["/bin/*"], ["/bin/../bin/ls"], ["/"], [], ["/bin//ls"]])
def test_operator_lists_absolute_programs(allow: list[str]) -> None:
    """A relative name or a pattern would allow what nobody meant."""
    with pytest.raises(ValidationError, match="absolute path"):
        CommandConnection.model_validate({"allow": [allow]})


def test_program_that_others_may_replace_is_refused(tmp_path: Path, program: Write) -> None:
    """Neither the file, nor a directory, nor a link on the way may belong to others or be written by them."""
    path = Path(program("tool", "true"))
    assert find_program(str(path)).resolved == str(path)
    path.chmod(0o757)
    with pytest.raises(PlanRefused, match="may be written by others"):
        find_program(str(path))
    path.chmod(0o755)
    tmp_path.chmod(0o777)
    with pytest.raises(PlanRefused, match="may be written by others"):
        find_program(str(path))
    tmp_path.chmod(0o755)
    os.chown(path, 12_345, -1)
    with pytest.raises(PlanRefused, match="belongs to user 12345"):
        find_program(str(path))
    os.chown(path, 0, -1)
    (tmp_path / "link").symlink_to("tool")
    assert find_program(str(tmp_path / "link")).resolved == str(path)
    os.chown(tmp_path / "link", 12_345, -1, follow_symlinks=False)
    with pytest.raises(PlanRefused, match="belongs to user 12345"):
        find_program(str(tmp_path / "link"))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(PlanRefused, match="more than 40 links"):
        find_program(str(tmp_path / "circle"))
    path.chmod(0o644)
    with pytest.raises(PlanRefused, match="can't be executed"):
        find_program(str(path))


async def test_apply_refuses_a_world_that_is_not_the_plan_s(tmp_path: Path, program: Write) -> None:
    """Another file in the program's place, other surroundings, a shorter list: nothing is run."""
    path, mark = program("tool", f"touch {tmp_path}/ran"), tmp_path / "ran"
    plan = await planned(context(path), path)
    with pytest.raises(PreconditionChanged, match="environment, directory or limits"):
        await Run().apply(plan, context(path, env={"PATH": "/evil"}))
    with pytest.raises(PlanRefused, match="does not allow"):
        await Run().apply(plan, context("/bin/true"))
    replace_program(path)
    with pytest.raises(PreconditionChanged, match="program's file"):
        await Run().apply(plan, context(path))
    assert not mark.exists()


# --- surroundings ----------------------------------------------------------------------------------------------------------


async def test_environment_is_what_the_settings_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is inherited; a secret is read at the call, and stands in no plan."""
    monkeypatch.setenv("INHERITED", "never")
    (tmp_path / "token").write_text("s3cret-token\n")
    ctx = context("/usr/bin/env", env={"LANG": "C", "TOKEN": {"file": str(tmp_path / "token")}})
    plan = await planned(ctx, "/usr/bin/env")
    assert b"s3cret" not in canonical(to_json(plan))
    receipt = await Run().apply(plan, ctx)
    await ctx.aclose()
    assert sorted(printed(receipt).split()) == ["LANG=C", "TOKEN=s3cret-token"]


LIBC_SIGNALS = 0b11 << 31
"""32 and 33 belong to the C library, which lets nobody change them; whoever started the tests may have left them ignored."""


async def test_command_gets_a_clean_process(tmp_path: Path, program: Write) -> None:
    """Its own session, no descriptors but three, an empty stdin, the settings' directory, umask, limits, no way to more privileges."""
    path = program(
        "look",
        "cat; ls /proc/$$/fd; pwd; umask; ulimit -n; ulimit -c\n"
        "grep -E 'NoNewPrivs|SigIgn|SigBlk' /proc/self/status; echo $$ $(ps -o sid= -p $$)",
    )
    ctx = context(path, env={"PATH": "/usr/bin:/bin"}, directory=str(tmp_path), umask="027", limits={"open_files": 64})
    words = printed(await ran(ctx, path)).split()
    assert words[:4] == ["0", "1", "10", "2"]  # 10 is the shell's own, of its script
    assert words[4:8] == [str(tmp_path), "0027", "64", "0"]
    assert words[8:11] + words[12:14] == ["SigBlk:", "0000000000000000", "SigIgn:", "NoNewPrivs:", "1"]
    assert int(words[11], 16) & ~LIBC_SIGNALS == 0
    assert words[14] == words[15]


async def test_command_runs_as_its_own_user() -> None:
    """With that user's group and no others; root is only what is asked for by name."""
    words = printed(await ran(context("/usr/bin/id", user="nobody"), "/usr/bin/id")).strip()
    assert words == "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"
    with pytest.raises(PlanRefused, match="names no user"):
        await planned(context("/usr/bin/id", user=None), "/usr/bin/id")
    with pytest.raises(PlanRefused, match="knows no user 'nosuch'"):
        find_user("nosuch", None)


def test_daemon_that_can_t_change_users_refuses_another_user() -> None:
    """It would have to run as somebody else than was written down."""
    code = """
import os
from actions.command.host import find_user
from remediator.errors import PlanRefused
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert find_user(None, None).uid is None
try:
    find_user("daemon", None)
except PlanRefused as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "may not change users" in done.stdout, done.stderr


# --- ends --------------------------------------------------------------------------------------------------------------


async def test_exit_codes_mean_what_the_rule_says(program: Write) -> None:
    """Success is done; unchanged is a failure that changed nothing; everything else nobody knows."""
    path = program("exit", 'exit "$1"')
    wish = {"success": [0, 3], "unchanged": [4]}
    assert (await ran(context(path), path, "3", **wish)).data["exit_code"] == 3
    with pytest.raises(PermanentError, match=r"exit code 4.*nothing was changed"):
        await ran(context(path), path, "4", **wish)
    with pytest.raises(OutcomeUnknown, match=r"exit code 5.*may have done part"):
        await ran(context(path), path, "5", **wish)
    killed = program("killed", "kill -SEGV $$")
    with pytest.raises(OutcomeUnknown, match="signal 11"):
        await ran(context(killed), killed)


async def test_what_can_t_be_started_changed_nothing(tmp_path: Path) -> None:
    """The reason is told."""
    path = tmp_path / "broken"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(PermanentError, match=r"was not started: could not execute .*No such file"):
        await ran(context(str(path)), str(path))
    with pytest.raises(PermanentError, match="was not started: could not go to /no/such"):
        await ran(context("/bin/true", directory="/no/such"), "/bin/true")


async def test_time_limit_ends_all_that_was_started(tmp_path: Path, program: Write) -> None:
    """Also what ignores SIGTERM, what is stopped, and what went into a session of its own."""
    pids = tmp_path / "pids"
    stubborn = program("stubborn", f"trap '' TERM HUP\necho $$ >> {pids}\nsleep 100 &\necho $! >> {pids}\nwait\nsleep 100")
    path = program(
        "tree",
        f"echo $$ >> {pids}\nsetsid {stubborn} &\n(setsid sh -c 'echo $$ >> {pids}; kill -STOP $$' &)\n"
        f"sleep 0.5\necho end >> {pids}\nsleep 100",
    )
    ctx = context(path, env={"PATH": "/usr/bin:/bin"})
    with pytest.raises(OutcomeUnknown, match="ended when its time was over"):
        await ran(ctx, path, timeout="1500ms")
    found = await started(pids)
    assert len(found) == 4
    assert not any(alive(pid) for pid in found)


async def test_what_a_command_leaves_behind_is_ended(tmp_path: Path, program: Write) -> None:
    """Unless the operator lets it stay."""
    pids = tmp_path / "pids"
    path = program("leaver", f"setsid sleep 100 >/dev/null 2>&1 &\necho $! > {pids}\necho end >> {pids}")
    receipt = await ran(context(path, env={"PATH": "/usr/bin:/bin"}), path)
    assert receipt.data["left"] == 1
    await gone(*await started(pids))
    receipt = await ran(context(path, env={"PATH": "/usr/bin:/bin"}, leave_running=True), path)
    (left,) = await started(pids)
    assert alive(left)
    os.kill(left, signal.SIGKILL)


async def test_output_keeps_head_and_tail_and_no_half_lines(program: Write) -> None:
    """The middle is counted and dropped, with it every line that the cut would halve; what is no text is made visible."""
    path = program(
        "talk", r"printf '\377\033[31mstart\n'; i=0; while [ $i -lt 2000 ]; do echo password-$i; i=$((i+1)); done; printf 'the end' >&2"
    )
    receipt = await ran(context(path, keep=200), path)
    text = printed(receipt)
    assert text.startswith("��[31mstart\npassword-0\n")
    assert text.endswith("password-1999\n")
    assert "bytes are left out" in text
    assert all(line.startswith(("password-", "�", "…")) for line in text.splitlines())
    assert receipt.data["truncated"]
    assert printed(receipt, "stderr") == "the end"
    assert "password" not in receipt.message


async def test_output_without_end_does_not_fill_memory() -> None:
    """It is read, counted and thrown away until the time is over."""
    with pytest.raises(OutcomeUnknown, match=r"\d{7,} bytes of stdout"):
        await ran(context("/usr/bin/yes"), "/usr/bin/yes", timeout="500ms")


async def test_cancelled_call_ends_the_command(tmp_path: Path, program: Write) -> None:
    """Whoever gives up waiting may not leave it behind."""
    pids = tmp_path / "pids"
    path = program("long", f"echo $$ > {pids}; echo end >> {pids}; sleep 100")
    ctx = context(path, env={"PATH": "/usr/bin:/bin"})
    call = asyncio.create_task(Run().apply(await planned(ctx, path), ctx))
    (pid,) = await started(pids)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not alive(pid)
    await ctx.aclose()


@pytest.mark.parametrize("victim", ["keeper", "supervisor"])
async def test_killed_keeper_takes_its_commands_along(tmp_path: Path, program: Write, victim: str) -> None:
    """The outcome is unknown, the command is ended, and the next call gets a keeper again."""
    pids = tmp_path / "pids"
    path = program("long", f'echo $$ > {pids}; echo $PPID >> {pids}; echo end >> {pids}; [ "$1" = short ] || sleep 100')
    ctx = context(path, env={"PATH": "/usr/bin:/bin"})
    call = asyncio.create_task(Run().apply(await planned(ctx, path), ctx))
    pid, supervisor = await started(pids)
    os.kill(parent(supervisor) if victim == "keeper" else supervisor, signal.SIGKILL)
    with pytest.raises(OutcomeUnknown):
        await call
    await gone(pid, supervisor)
    assert (await ran(ctx, path, "short")).data["exit_code"] == 0


# --- dry run, repetition, undo -----------------------------------------------------------------------------------------


async def test_plan_spawns_nothing_but_a_rehearsal(tmp_path: Path, program: Write) -> None:
    """A dry run plans; only a rule's `rehearse` is run then, and its failure stops the plan."""
    path = program("act", f'echo "$@" >> {tmp_path}/calls; [ "$1" != fails ]')
    ctx, calls = context(path), tmp_path / "calls"
    plan = await planned(ctx, path, "go", verify=[path, "verify"], undo=[path, "undo"])
    assert not calls.exists()
    assert plan.changes[0].after == f"{path} go"
    await planned(ctx, path, "go", rehearse=[path, "check"])
    assert calls.read_text() == "check\n"
    with pytest.raises(PlanRefused, match=r"its rehearsal .* exit code 1"):
        await planned(ctx, path, "go", rehearse=[path, "fails"])
    await ctx.aclose()


async def test_s17_a_running_command_is_neither_repeated_nor_judged(tmp_path: Path, program: Write) -> None:
    """While anything of a call runs on this host, its outcome is unknown and the same step starts no second time."""
    pids = tmp_path / "pids"
    path = program("long", f'[ "$1" = look ] && exit 1; echo $$ > {pids}; echo end >> {pids}; sleep 100')
    ctx = context(path, env={"PATH": "/usr/bin:/bin"})
    plan = await planned(ctx, path, repeat="detectable", detect=[path, "look"])
    call = asyncio.create_task(Run().apply(plan, ctx))
    await started(pids)
    other = context(path, env={"PATH": "/usr/bin:/bin"})
    found = await Run().reconcile(plan, other)
    assert (found.settled, "still runs" in found.message) == (Settled.UNKNOWN, True)
    with pytest.raises(PermanentError, match="earlier call of this same step still runs"):
        await Run().apply(plan, other)
    call.cancel()
    await asyncio.wait({call})
    assert (await Run().reconcile(plan, other)).settled is Settled.NOT_APPLIED
    await other.aclose()
    await ctx.aclose()


@pytest.mark.parametrize(
    ("wish", "settled"),
    [({}, Settled.UNKNOWN), ({"repeat": "conditional"}, Settled.NOT_APPLIED)],
)
async def test_s17_rule_declares_how_a_command_may_be_repeated(wish: Mapping[str, Any], settled: Settled) -> None:
    """Without a word it never is; where the rule says that it does no harm, it is run again."""
    ctx = context("/bin/true")
    plan = await planned(ctx, "/bin/true", **wish)
    assert (await Run().reconcile(plan, ctx)).settled is settled
    moved = Plan(**{**plan.__dict__, "precondition": {**plan.precondition, "host": "elsewhere"}})
    assert (await Run().reconcile(moved, ctx)).settled is Settled.UNKNOWN


async def test_s18_the_kill_switch_holds_back_a_command_that_was_looked_for(program: Write, tmp_path: Path) -> None:
    """`detect` may take as long as the command: thrown meanwhile, the command is not run."""
    path = program("work", f'[ "$1" = look ] && exit 1; touch {tmp_path}/done')
    ctx = LocalContext({"here": connection(path)}, key="run-1/1", halted=lambda: "paused by anna")
    plan = await planned(ctx, path, repeat="detectable", detect=[path, "look"])
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await Run().apply(plan, ctx)
    assert not (tmp_path / "done").exists()
    await ctx.aclose()


async def test_detect_that_can_t_tell_stops(program: Write) -> None:
    """Neither is anything run, nor anything said about an earlier call."""
    path = program("tool", '[ "$1" = look ] && exit 7; exit 0')
    ctx = context(path)
    plan = await planned(ctx, path, repeat="detectable", detect=[path, "look"])
    with pytest.raises(PermanentError, match="detect can't tell"):
        await Run().apply(plan, ctx)
    assert (await Run().reconcile(plan, ctx)).settled is Settled.UNKNOWN
    await ctx.aclose()


@pytest.mark.parametrize(("code", "health"), [("0", Health.HEALTHY), ("1", Health.UNHEALTHY), ("2", Health.UNKNOWN)])
async def test_verify_command_tells_health(program: Write, code: str, health: Health) -> None:
    """0 is healthy, 1 is not, anything else nobody knows."""
    path = program("exit", 'exit "$1"')
    ctx = context(path)
    plan = await planned(ctx, path, "0", verify=[path, code])
    verdict = await Run().verify(plan, await Run().apply(plan, ctx), ctx)
    assert verdict.health is health
    await ctx.aclose()


async def test_undo_needs_a_command_and_something_to_take_back() -> None:
    """Nothing is invented."""
    ctx = context("/bin/true")
    receipt = Receipt("", {"ran": True})
    with pytest.raises(NotReversible, match="names no command"):
        await Run().undo(await planned(ctx, "/bin/true"), receipt, ctx)
    plan = await planned(ctx, "/bin/true", undo=["/bin/true"])
    with pytest.raises(NotReversible, match="nothing was run"):
        await Run().undo(plan, Receipt("", {"ran": False}), ctx)
    assert (await Run().undo(plan, receipt, ctx)).undoes
    assert not Run.undoable({"argv": ["/bin/true"]})


async def test_s10_locks_are_what_the_rule_says_is_touched() -> None:
    """A whole id of another system is that system's lock; without a word it is the program."""
    ctx = context("/bin/true")
    plan = await planned(ctx, "/bin/true", touches=["queue/a", "kubernetes:prod/shop/deployment/api"])
    assert [target.lock for target in plan.targets] == ["command:here/-/queue/a", "kubernetes:prod/shop/deployment/api"]
    assert [target.lock for target in (await planned(ctx, "/bin/true")).targets] == ["command:here/-/program/bin/true"]
    assert not still_runs("nobody-s")


async def test_audit_tells_what_is_missing() -> None:
    """Programs that are not there or not listed; a listed one that no rule needs is too much."""
    found = connection("/bin/true", "/bin/false", "/no/such")
    rights = [right for name in ("/bin/true", "/no/such", "/bin/ls") for right in _rights(name)]
    audit = await found.audit("here", rights, LocalContext({}))
    assert [right.resource for right in audit.missing] == ["/no/such", "/bin/ls"]
    assert [right.resource for right in audit.excessive] == ["/bin/false"]


def _rights(program: str) -> list[Any]:
    from remediator.action import Right

    return [Right(program, "run")]
