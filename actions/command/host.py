"""What this host says about a command before it is run: which file it really is, whether it can be trusted, as whom it would run.

Everything here may block (a network file system, a directory of users) and so belongs into a thread.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remediator.errors import PlanRefused
from remediator.model import JSON

_MOST_LINKS = 40
_SETGID, _SETUID = 6, 7
"""Capabilities by number."""


@dataclass(frozen=True)
class Program:
    """A file that may be executed: as it was written, where it really lies, and what would change with its contents."""

    path: str
    resolved: str
    identity: str


@dataclass(frozen=True)
class User:
    """As whom a command runs. `uid` None: as the daemon, which is not allowed to become anybody else."""

    name: str
    uid: int | None
    gid: int | None


# --- programs ------------------------------------------------------------------------------------------------------------


def find_program(path: str) -> Program:
    """Follow a path to its file.

    Raises `PlanRefused` when that can't be executed, or when anybody but root and the daemon's own user could put another in its
    place: by writing to it, or to any directory or link on the way.
    """
    resolved, status = path, None
    for place, found in _trace(path):
        _require_trusted(path, place, found)
        resolved, status = place, found
    if status is None or not stat.S_ISREG(status.st_mode):
        raise PlanRefused(f"program {path!r} is not a file")
    if not status.st_mode & 0o111:
        raise PlanRefused(f"program {path!r} can't be executed: give it that right (chmod +x {resolved})")
    identity = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
    return Program(path, resolved, identity)


def _trace(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Give everything that is met on the way along `path`: directories, links, and the file at last. Raises `PlanRefused`."""
    left, current, links = path.strip("/").split("/"), "/", 0
    yield current, _status(path, current)
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        place = str(Path(current).parent) if name == ".." else current.rstrip("/") + "/" + name
        status = _status(path, place)
        yield place, status
        if not stat.S_ISLNK(status.st_mode):
            current = place
            continue
        links += 1
        if links > _MOST_LINKS:
            raise PlanRefused(f"program {path!r} leads through more than {_MOST_LINKS} links")
        target = str(Path(place).readlink())
        current = "/" if target.startswith("/") else current
        left = [*target.strip("/").split("/"), *left]


def _status(path: str, place: str) -> os.stat_result:
    try:
        return os.lstat(place)
    except OSError as error:
        raise PlanRefused(f"program {path!r} can't be found: {place}: {error.strerror}") from error


def _require_trusted(path: str, place: str, status: os.stat_result) -> None:
    who = f"program {path!r} can't be trusted: {place}"
    if status.st_uid not in (0, os.geteuid()):
        raise PlanRefused(f"{who} belongs to user {status.st_uid}, not to root or to the daemon's own user")
    writable = status.st_mode & (stat.S_IWOTH if status.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP)
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX  # there only the owner of an entry replaces it
    if writable and not sticky and not stat.S_ISLNK(status.st_mode):
        raise PlanRefused(f"{who} may be written by others; take that right away (chmod go-w {place})")


# --- users -----------------------------------------------------------------------------------------------------------------


def find_user(user: str | None, group: str | None) -> User:
    """Return as whom commands run.

    Raises `PlanRefused` for names that this host does not know, for another user than the daemon's when it may not change users,
    and for root where nobody said so.
    """
    own = os.geteuid()
    if user is None and own == 0:
        raise PlanRefused("the daemon runs as root, and the connection names no user: set its `user` (also where it shall be root)")
    uid, gid, name = _lookup(user) if user is not None else (own, os.getegid(), str(own))
    gid = gid if group is None else _group(group)
    if may_change_users():
        return User(name, uid, gid)
    if (uid, gid) != (own, os.getegid()):
        message = (
            f"commands shall run as user {name} and group {gid}, and the daemon (user {own}, group {os.getegid()}) may not change users"
        )
        raise PlanRefused(f"{message}: start it as root or with CAP_SETUID and CAP_SETGID, or leave the connection's `user` out")
    return User(name, None, None)


def _lookup(user: str) -> tuple[int, int, str]:
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise PlanRefused(f"this host knows no user {user!r}") from None
    return found.pw_uid, found.pw_gid, found.pw_name


def _group(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise PlanRefused(f"this host knows no group {group!r}") from None


@functools.cache
def may_change_users() -> bool:
    """Tell whether this process may become another user, by its effective capabilities; they are read once, and it never gives any up."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return all(held >> capability & 1 for capability in (_SETUID, _SETGID))


# --- all together ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What one look at the host said."""

    host: str
    programs: dict[str, Program]
    user: User

    @property
    def facts(self) -> dict[str, JSON]:
        """What must not change between plan and call."""
        programs = {path: [one.resolved, one.identity] for path, one in sorted(self.programs.items())}
        return {"host": self.host, "programs": programs, "user": [self.user.name, self.user.uid, self.user.gid]}


def look(paths: Iterable[str], user: str | None, group: str | None) -> Look:
    """Look at programs and user. Raises `PlanRefused`."""
    return Look(socket.gethostname(), {path: find_program(path) for path in paths}, find_user(user, group))
