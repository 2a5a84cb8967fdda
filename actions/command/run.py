"""`command.run`: run a command on the daemon's own host, for what has no action of its own."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.command.client import Ended, Keeper, keeper_of, lock_of, still_runs
from actions.command.connection import CommandConnection
from actions.command.host import Look, look
from remediator.action import CODE, Action, Context, Params, Permission, PermissionKind, Reconciled, SecretRef, Settled
from remediator.argv import fill, places
from remediator.duration import Duration
from remediator.errors import (
    NotReversible,
    OutcomeUnknown,
    PermanentError,
    PlanRefused,
    PreconditionChanged,
    RemediatorError,
    TemporaryError,
)
from remediator.halting import go_on
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

READING = timedelta(seconds=10)
"""Most time that a command may take which only looks."""
_KEPT = {
    "host": "the host",
    "programs": "a program's file",
    "user": "the user's number",
    "surroundings": "environment, directory or limits",
}
"""What a plan's precondition holds, in words."""
_HELD = "an earlier call of this same step still runs on this host"

_Argv = Annotated[tuple[Annotated[str, Field(max_length=1_000)], ...], Field(min_length=1, max_length=64, json_schema_extra=CODE)]
_Code = Annotated[int, Field(ge=0, le=255)]
_Touched = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9@][A-Za-z0-9@._:/+-]*$")]


class RunParams(Params):
    """Which command, what its end means, and which others look at what it did."""

    connection: str
    argv: _Argv = Field(
        description="the command: an absolute path and its arguments, no shell; a whole element `{name}` is a value of `args`"
    )
    args: Mapping[str, str] = Field(default_factory=dict, description="values for the places of argv (and of the other commands)")
    options: tuple[str, ...] = Field(
        (), max_length=64, description="names of args whose values may begin with `-` without `--` before them"
    )
    touches: tuple[_Touched, ...] = Field(
        (), max_length=20, description="what it changes, for locks: names of your own, or whole ids of other systems; none: the program"
    )
    timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(milliseconds=100), description="with `grace` less than the step's own")
    success: tuple[_Code, ...] = Field((0,), min_length=1, max_length=20, description="exit codes that mean it was done")
    unchanged: tuple[_Code, ...] = Field((), max_length=20, description="exit codes that mean it failed and surely changed nothing")
    repeat: Repeat = Field(Repeat.NEVER, description="`detectable` with `detect`; `conditional` where running it again does no harm")
    detect: _Argv | None = Field(None, description="a command that only looks: exit code 0 says that it is done, 1 that it is not")
    verify: _Argv | None = Field(None, description="a command that only looks: exit code 0 says that all is well, 1 that it is not")
    undo: _Argv | None = Field(None, description="the command that takes it back")
    rehearse: _Argv | None = Field(None, description="a command that only looks, run with every plan, also in dry run: 0 lets it go on")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.detect is not None) != (self.repeat is Repeat.DETECTABLE):
            raise ValueError("repeat: detectable and detect belong together")
        if set(self.success) & set(self.unchanged):
            raise ValueError("an exit code can't be in success and in unchanged")
        if unknown := set(self.options) - set(self.args):
            raise ValueError(f"options: there is no args.{min(unknown)}")
        _ = self.commands
        return self

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """All commands with their places filled. Raises ValueError for values that have no place, or could become options or code."""
        others = {"detect": self.detect, "verify": self.verify, "undo": self.undo, "rehearse": self.rehearse}
        found = {"argv": fill(self.argv, self.args, options=self.options)}
        return found | {
            name: fill(argv, places(argv, self.args), options=self.options) for name, argv in others.items() if argv is not None
        }


class Run(Action[RunParams]):
    """Run a command on the daemon's host: an argv without a shell, only what the connection's `allow` lists, as its `user`.

    Values from outside fill whole elements of argv and are never options or code. Only an exit code of `success` means that it was done,
    one of `unchanged` that nothing was; everything else (another code, a signal, the time-out, a crash of the daemon) leaves the
    outcome unknown, and a person settles it, unless the rule says how it may be repeated (`repeat`, by default never). The command
    and all that it starts end with its time, and with the daemon. What it printed is kept for responders only.
    """

    name: ClassVar[str] = "command.run"
    Params: ClassVar[type[Any]] = RunParams
    connection = CommandConnection
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.NEVER
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (Permission(PermissionKind.COMMAND, ("run",), "*", why="run what the rule names"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "here",
        "argv": ["/usr/local/bin/queuectl", "pause", "--", "{queue}"],
        "args": {"queue": "transcode"},
        "touches": ["queue/transcode"],
        "repeat": "detectable",
        "detect": ["/usr/local/bin/queuectl", "is-paused", "--", "{queue}"],
        "undo": ["/usr/local/bin/queuectl", "resume", "--", "{queue}"],
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Return the programs that one call needs."""
        argvs = [params.get(name) for name in ("argv", "detect", "verify", "undo", "rehearse")]
        programs = sorted({argv[0] for argv in argvs if isinstance(argv, list | tuple) and argv and isinstance(argv[0], str)})
        return tuple(Permission(PermissionKind.COMMAND, ("run",), program, why="run it") for program in programs)

    @classmethod
    def undoable(cls, params: Mapping[str, Any]) -> bool:
        """Tell whether the rule says how to take it back."""
        return params.get("undo") is not None

    def repeat_of(self, plan: Plan) -> Repeat:
        """Return how the rule says that this command may be repeated."""
        return Repeat(plan.intent["repeat"])

    async def plan(self, params: RunParams, ctx: Context) -> Plan:
        """Spell out the command and look at its program. Nothing is run but `rehearse`."""
        settings = ctx.connection(CommandConnection, params.connection)
        if params.timeout > settings.max_time:
            raise PlanRefused(f"timeout is {params.timeout}, and connection {params.connection!r} allows {settings.max_time} (max_time)")
        commands = params.commands
        seen = await _look(settings, params.connection, commands)
        plan = _plan(params, settings, commands, seen)
        if "rehearse" in commands:
            ended = await _looking(plan, "rehearse", ctx)
            if ended.code != 0 or ended.why:
                raise PlanRefused(f"its rehearsal {shlex.join(commands['rehearse'])} {ended.words}")
        return plan

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Run the command once, unless it can be seen that it is done already."""
        settings = ctx.connection(CommandConnection, plan.connection)
        await _compare(plan, settings)
        if _is_done(plan, await _detected(plan, ctx)):
            return Receipt("nothing was run: it is done already", {"ran": False}, tuple(target.id for target in plan.targets))
        if "detect" in plan.intent["commands"]:
            await go_on(ctx)  # looking may have taken long
        keeper = await keeper_of(ctx, plan.connection)
        order = await _order(plan, "argv", settings, ctx, timedelta(seconds=plan.intent["timeout"]))
        ended = await keeper.run(order)
        what = f"{plan.intent['argv'][0]!r} {ended.words}"
        if ended.why or ended.alive or ended.code is None or ended.code not in (*plan.intent["success"], *plan.intent["unchanged"]):
            raise OutcomeUnknown(f"{what}; it may have done part of its work (success: {plan.intent['success']})")
        if ended.code in plan.intent["unchanged"]:
            raise PermanentError(f"{what}, which means that nothing was changed")
        return _receipt(plan, ended, what)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Run the command that looks, where the rule has one; else go by the exit code on record."""
        if "verify" in plan.intent["commands"] and not plan.undoes:
            ended = await _looking(plan, "verify", ctx)
            health = {0: Health.HEALTHY, 1: Health.UNHEALTHY}.get(-1 if ended.code is None or ended.why else ended.code, Health.UNKNOWN)
            return Verdict(health, f"{plan.intent['commands']['verify'][0]!r} {ended.words}")
        return Verdict(Health.HEALTHY, receipt.message)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Ask the rule's `detect` whether it is done, once nothing of an earlier call runs any more."""
        if still_runs(lock_of(ctx, "argv")):
            return Reconciled(Settled.UNKNOWN, _HELD)
        repeat = self.repeat_of(plan)
        if repeat is Repeat.NEVER:
            return Reconciled(Settled.UNKNOWN, "the rule does not say how this command may be repeated")
        try:
            await _compare(plan, ctx.connection(CommandConnection, plan.connection))
            if repeat is Repeat.CONDITIONAL:
                return Reconciled(Settled.NOT_APPLIED, "the rule says that running it again does no harm")
            done = _is_done(plan, await _detected(plan, ctx))
        except (PreconditionChanged, PermanentError) as error:
            return Reconciled(Settled.UNKNOWN, f"it can't be looked into: {error}")
        if not done:
            return Reconciled(Settled.NOT_APPLIED, "detect says that it is not done")
        touched = tuple(target.id for target in plan.targets)
        return Reconciled(Settled.APPLIED, "detect says that it is done", Receipt("detect says that it is done", {"ran": True}, touched))

    async def recall(self, plan: Plan, receipt: Receipt, ctx: Context) -> Receipt:  # noqa: ARG002
        """Return what it is given: the command that takes it back needs no result."""
        return receipt

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the command that takes it back. Nothing is run."""
        if "undo" not in plan.intent["commands"]:
            raise NotReversible("the rule names no command that takes it back (undo)")
        if receipt.data.get("ran") is False:
            raise NotReversible("nothing was run, so nothing is taken back")
        settings = ctx.connection(CommandConnection, plan.connection)
        commands = {name: tuple(argv) for name, argv in plan.intent["commands"].items() if name == "detect"}
        commands["argv"] = tuple(plan.intent["commands"]["undo"])
        return _undo_plan(plan, settings, commands, await _look(settings, plan.connection, commands))


# --- plans -------------------------------------------------------------------------------------------------------------


async def _look(settings: CommandConnection, connection: str, commands: Mapping[str, Sequence[str]]) -> Look:
    """Hold commands against what is allowed, and look at their programs on this host. Raises `PlanRefused`."""
    for argv in commands.values():
        if (reason := settings.refusal(argv, name=connection)) is not None:
            raise PlanRefused(reason)
    return await asyncio.to_thread(look, {argv[0] for argv in commands.values()}, settings.user, settings.group)


def _plan(params: RunParams, settings: CommandConnection, commands: Mapping[str, Sequence[str]], seen: Look) -> Plan:
    name = params.connection
    targets = tuple(_target(name, one) for one in params.touches or (f"program{commands['argv'][0]}",))
    command = shlex.join(commands["argv"])
    return Plan(
        action=Run.name,
        summary=f"run `{command}` on {seen.host} as user {seen.user.name}",
        targets=targets,
        intent={
            "argv": list(commands["argv"]),
            "commands": {key: list(argv) for key, argv in commands.items() if key != "argv"},
            "user": settings.user,
            "group": settings.group,
            "directory": settings.directory,
            "timeout": params.timeout.total_seconds(),
            "success": list(params.success),
            "unchanged": list(params.unchanged),
            "repeat": params.repeat.value,
        },
        precondition={**seen.facts, "surroundings": settings.surroundings},
        changes=tuple(Change(target.id, "command", None, command) for target in targets),
        impact=Impact(touched=len(targets)),
        connection=name,
    )


def _undo_plan(plan: Plan, settings: CommandConnection, commands: Mapping[str, Sequence[str]], seen: Look) -> Plan:
    command = shlex.join(commands["argv"])
    own = {"argv": list(commands["argv"]), "commands": {key: list(argv) for key, argv in commands.items() if key != "argv"}}
    # Its exit codes mean what they mean everywhere; those of the rule are about the command that it takes back.
    rest = {"success": [0], "unchanged": [], "repeat": (Repeat.DETECTABLE if "detect" in commands else Repeat.NEVER).value}
    return Plan(
        action=plan.action,
        summary=f"run `{command}` on {seen.host} as user {seen.user.name}, to take back `{shlex.join(plan.intent['argv'])}`",
        targets=plan.targets,
        intent={**plan.intent, **own, **rest, "user": settings.user, "group": settings.group, "directory": settings.directory},
        precondition={**seen.facts, "surroundings": settings.surroundings},
        changes=tuple(Change(target.id, "command", None, command) for target in plan.targets),
        impact=plan.impact,
        connection=plan.connection,
        undoes=True,
    )


def _target(connection: str, touched: str) -> Target:
    """Return a target: an id of another system as it stands, so that it shares that system's locks, else a name of this connection."""
    system, colon, _ = touched.partition(":")
    ident = touched if colon and system.isalnum() and touched.count("/") >= 3 else f"command:{connection}/-/{touched}"
    return Target(ident, ident, scope={"target": touched})


async def _compare(plan: Plan, settings: CommandConnection) -> None:
    """Raise `PreconditionChanged` when host or settings are not what the plan saw, `PlanRefused` for what is not allowed any more."""
    commands = {"argv": plan.intent["argv"], **plan.intent["commands"]}
    seen = await _look(settings, plan.connection, commands)
    found = {**seen.facts, "surroundings": settings.surroundings}
    for name, before in plan.precondition.items():
        if found[name] != before:
            raise PreconditionChanged(f"connection {plan.connection!r}: {_KEPT[name]} changed since the plan was made")


# --- calls -------------------------------------------------------------------------------------------------------------


async def _order(plan: Plan, name: str, settings: CommandConnection, ctx: Context, timeout: timedelta) -> dict[str, JSON]:  # noqa: ASYNC109
    """Return the keeper's order for one of a plan's commands. Secrets are read here and not earlier."""
    argv = plan.intent["argv"] if name == "argv" else plan.intent["commands"][name]
    _, uid, gid = plan.precondition["user"]
    env = {key: await ctx.secret(value) if isinstance(value, SecretRef) else value for key, value in settings.env.items()}
    return {
        "lock": lock_of(ctx, name),
        "path": plan.precondition["programs"][argv[0]][0],
        "argv": list(argv),
        "env": env,
        "uid": uid,
        "gid": gid,
        "directory": settings.directory,
        "umask": int(settings.umask, 8),
        "limits": settings.limits.by_name,
        "timeout": timeout.total_seconds(),
        "grace": settings.grace.total_seconds(),
        "keep": settings.keep,
        "leave": settings.leave_running and name == "argv",
        "new_privileges": settings.new_privileges,
    }


async def _looking(plan: Plan, name: str, ctx: Context) -> Ended:
    """Run a command that only looks, so that no end of it is worse than not knowing. Raises `TemporaryError`, `PermanentError`."""
    settings = ctx.connection(CommandConnection, plan.connection)
    keeper: Keeper = await keeper_of(ctx, plan.connection)
    try:
        return await keeper.run(await _order(plan, name, settings, ctx, READING))
    except OutcomeUnknown as error:
        raise TemporaryError(str(error)) from error


async def _detected(plan: Plan, ctx: Context) -> bool | None:
    """Return whether `detect` says that the rule's command is done; None without `detect`. Raises `PermanentError` for no answer."""
    if "detect" not in plan.intent["commands"]:
        return None
    try:
        ended = await _looking(plan, "detect", ctx)
    except RemediatorError as error:
        raise PermanentError(f"detect did not answer: {error}") from error
    if ended.why or ended.code not in (0, 1):
        raise PermanentError(f"detect can't tell: {plan.intent['commands']['detect'][0]!r} {ended.words}")
    return ended.code == 0


def _is_done(plan: Plan, detected: bool | None) -> bool:
    """Tell whether a plan has nothing left to do; for one that takes back, that is when it is not done (any more)."""
    return detected is not None and detected is not plan.undoes


def _receipt(plan: Plan, ended: Ended, what: str) -> Receipt:
    return Receipt(
        what,
        {
            "ran": True,
            "exit_code": ended.code,
            "seconds": round(ended.seconds, 3),
            "left": ended.left,
            "stdout_bytes": ended.out.total,
            "stderr_bytes": ended.err.total,
            "truncated": ended.out.truncated or ended.err.truncated,
            "evidence": {"stdout": ended.out.text, "stderr": ended.err.text},
        },
        tuple(target.id for target in plan.targets),
    )
