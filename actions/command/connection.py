"""What may be run on this host, as whom, in which surroundings: the operator's word, which no rule widens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actions.command.host import find_program, find_user
from remediator.action import Audit, Connection, Context, Right, SecretRef
from remediator.argv import is_allowed
from remediator.duration import Duration
from remediator.errors import PlanRefused
from remediator.model import JSON

_Element = Annotated[str, Field(max_length=1_000)]
_Directory = Annotated[str, Field(pattern=r"^/", max_length=1_000)]


class Limits(BaseModel):
    """Limits that the kernel holds each of the processes to; what is left out is as the daemon's own. There are never core dumps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu_seconds: int | None = Field(None, ge=1, description="processor time")
    memory_bytes: int | None = Field(None, ge=1 << 20, description="address space")
    open_files: int | None = Field(None, ge=8)
    file_bytes: int | None = Field(None, ge=0, description="largest file that it may write")
    processes: int | None = Field(None, ge=1, description="processes of its user on this host, all together; root is not held to it")

    @property
    def by_name(self) -> dict[str, int]:
        """The limits by the kernel's names, without RLIMIT_."""
        found = {
            "CPU": self.cpu_seconds,
            "AS": self.memory_bytes,
            "NOFILE": self.open_files,
            "FSIZE": self.file_bytes,
            "NPROC": self.processes,
        }
        return {"CORE": 0, **{name: most for name, most in found.items() if most is not None}}


class CommandConnection(Connection):
    """The daemon's own host. Rules run what `allow` lists and nothing else, as `user`, with `env` for their whole environment.

    Its `scope` may limit `target`, what a rule says that a command touches.
    """

    leads_by: ClassVar[tuple[str, ...] | None] = ("user",)

    allow: tuple[tuple[_Element, ...], ...] = Field(
        min_length=1,
        description="what may be run: the program's absolute path, then a glob for each argument; a last `**` stands for any more",
    )
    user: str | None = Field(None, min_length=1, description="name or number; none: the daemon's own, unless that is root")
    group: str | None = Field(None, min_length=1, description="name or number; none: the user's own. There are no further groups")
    env: Mapping[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | SecretRef] = Field(
        default_factory=dict, description="the whole environment, values or references to secrets; nothing is inherited, not even PATH"
    )
    directory: _Directory = Field("/", description="working directory")
    umask: str = Field("077", pattern=r"^0?[0-7]{3}$")
    limits: Limits = Field(default_factory=Limits)
    max_time: Duration = Field(
        timedelta(minutes=10), gt=timedelta(), le=timedelta(hours=2), description="most that a rule's `timeout` may be"
    )
    grace: Duration = Field(timedelta(seconds=5), le=timedelta(minutes=1), description="time between SIGTERM and SIGKILL")
    keep: int = Field(8_192, ge=0, le=32_768, description="bytes kept of each of stdout and stderr: the first half and the last")
    leave_running: bool = Field(False, description="let a command that ends well leave processes behind; they are ended otherwise")
    new_privileges: bool = Field(False, description="let programs gain privileges as setuid ones (sudo) do")

    @model_validator(mode="after")
    def _programs_are_absolute(self) -> Self:
        for pattern in self.allow:
            program = pattern[0] if pattern else ""
            if (
                not program.startswith("/")
                or os.path.normpath(program) != program
                or program == "/"
                or any(sign in program for sign in "*?[")
            ):
                raise ValueError(f"allow: {program!r} is not a program's absolute path, written out without patterns, . and ..")
        if any("\0" in value for value in self.env.values() if isinstance(value, str)):
            raise ValueError("env: a value can't hold a NUL character")
        return self

    @property
    def programs(self) -> list[str]:
        """The paths of all programs that may be run."""
        return sorted({pattern[0] for pattern in self.allow})

    @property
    def surroundings(self) -> dict[str, JSON]:
        """All that a command gets besides its argv; secrets by reference."""
        env = {name: value if isinstance(value, str) else value.model_dump(exclude_none=True) for name, value in sorted(self.env.items())}
        return {
            "env": env,
            "directory": self.directory,
            "umask": self.umask,
            "limits": self.limits.by_name,
            "leave_running": self.leave_running,
            "new_privileges": self.new_privileges,
        }

    def refusal(self, argv: Sequence[str], *, name: str) -> str | None:
        """Return why this connection, called `name`, does not allow an argv; None when it does."""
        # The program is compared as text: globs are for arguments.
        if is_allowed(argv, [pattern for pattern in self.allow if pattern[0] == argv[0]]):
            return None
        if argv[0] not in self.programs:
            return f"connection {name!r} does not allow the program {argv[0]!r}; its `allow` has {', '.join(self.programs)}"
        return f"connection {name!r} does not allow {argv[0]!r} with these {len(argv) - 1} arguments; see its `allow`"

    async def audit(self, name: str, rights: Sequence[Right], ctx: Context) -> Audit:  # noqa: ARG002 - part of the contract
        """See whether the programs are there and can be trusted, and whether the user can be had. Runs nothing."""
        return await asyncio.to_thread(self._audit, rights)

    def _audit(self, rights: Sequence[Right]) -> Audit:
        needed = {right.resource for right in rights}
        missing, notes = [], []
        for right in rights:
            if right.resource in self.programs:
                try:
                    find_program(right.resource)
                except PlanRefused as error:
                    missing.append(right)
                    notes.append(str(error))
            elif right.resource != "*":
                missing.append(right)
        try:
            find_user(self.user, self.group)
        except PlanRefused as error:
            missing += [right for right in rights if right not in missing]
            notes.append(str(error))
        excessive = tuple(Right(program, "run") for program in self.programs if program not in needed and "*" not in needed)
        return Audit(tuple(missing), excessive, notes=(*notes, "arguments are not compared"))
