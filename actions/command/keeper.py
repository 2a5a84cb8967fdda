"""The keeper: a small process that starts, watches and ends the commands of one connection on the daemon's behalf.

    daemon ──socket── keeper ──fork── supervisor (one for each command at a time) ──fork── command, and whatever that starts

The daemon itself never forks: it is large, has threads, and its event loop's way to watch children is slow. A supervisor is the
*subreaper* of its command, so that whatever the command starts, also in sessions of its own, remains the supervisor's and ends with it.
When the daemon dies, its socket closes, and every command under way is ended (SIGTERM, then SIGKILL) before the keeper goes.
Until all of a command is gone its supervisor holds an abstract socket named after the call, so that nobody takes it for over.

Runs by itself as a script, isolated, with the standard library only: `python -I -S keeper.py FD`.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

LARGEST = 1 << 20
"""Most bytes of one message."""
LINGER = 0.2
"""Seconds that what a command left behind gets to end by itself: the last parts of a pipeline, say."""
HOPELESS = 5.0
"""Seconds after which what survives SIGKILL (in the kernel's hands, or another user's) is reported instead of awaited."""
ROUND = 0.05
"""Seconds between two looks at what still has to end."""

MOST_FREE = 4
"""How many supervisors wait for work; forking one for each command would cost as much as the command."""

_LEAVING = -1
_PDEATHSIG, _SUBREAPER, _NO_NEW_PRIVS = 1, 36, 38
_KERNELS = {signal.SIGKILL, signal.SIGSTOP}
"""Nobody may handle or ignore these."""
_HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Order = dict[str, Any]


def lock_address(name: str) -> str:
    """Return the abstract address that is taken while the call `name` runs."""
    return f"\0remediator/command/{name}"


# --- one command -------------------------------------------------------------------------------------------------------


class Stream:
    """What came through one pipe: its first and last bytes, and how many there were in all."""

    def __init__(self, keep: int) -> None:
        self.most = keep // 2
        self.head = bytearray()
        self.tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take what was read."""
        self.total += len(data)
        room = self.most - len(self.head)
        self.head += data[:room] if room > 0 else b""
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > self.most:
            del self.tail[: len(self.tail) - self.most]

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"head": base64.b64encode(self.head).decode(), "tail": base64.b64encode(self.tail).decode(), "total": self.total}


class Command:
    """One command, from its start to its end, or to the end that it is given."""

    def __init__(self, order: Order, supervisor: Supervisor) -> None:
        self.order = order
        self.supervisor = supervisor
        self.main = 0
        self.status: int | None = None
        self.alone = False
        """True when no process of the command is left."""
        self.told_to_stop = False
        self.why = ""
        self.left = 0
        self.failure = b""
        self.streams = {"out": Stream(order["keep"]), "err": Stream(order["keep"])}
        self.pipes: dict[int, Stream | None] = {}
        self.poll = select.poll()
        for descriptor in (supervisor.woken, supervisor.keeper.fileno()):
            self.poll.register(descriptor, select.POLLIN)

    def run(self) -> None:
        """Run it and tell the daemon how it ended."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
            try:
                lock.bind(lock_address(self.order["lock"]))
            except OSError as error:
                running = error.errno == errno.EADDRINUSE
                self._tell(unstarted="an earlier call of this same step still runs" if running else f"no lock: {error.strerror}")
                return
            # With the lock in hand: who finds it free later knows that this order is not carried out any more.
            if self.supervisor.is_alone():
                return
            began = time.monotonic()
            self._start()
            self._follow(began)
            seconds = time.monotonic() - began
            alive = [] if self.alone or self._leaves() else self._tree()
            if alive:
                self._tell_end(seconds, alive)
            while alive and not self.alone:  # the lock stays for as long as anything of it does
                time.sleep(ROUND * 10)
                self._signal(signal.SIGKILL)
                self._reap()
        for pipe in list(self.pipes):
            os.close(pipe)
        if self.failure:
            self._tell(unstarted=self.failure.decode(errors="replace"))
        elif not alive:
            self._tell_end(seconds, alive)

    # --- starting

    def _start(self) -> None:
        """Fork the command; its outputs and the reason why it could not be started come through pipes."""
        ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        supervisor = os.getpid()
        self.main = os.fork()
        if self.main == 0:
            _become(self.order, [writing for _, writing in ends], supervisor, self.supervisor.prctl)
        for (reading, writing), stream in zip(ends, (self.streams["out"], self.streams["err"], None), strict=True):
            os.close(writing)
            os.set_blocking(reading, False)
            self.pipes[reading] = stream
            self.poll.register(reading, select.POLLIN | select.POLLHUP)

    # --- following

    def _follow(self, began: float) -> None:
        """Wait for the command's end, and see to it when its time is over, when told to, and for what it leaves behind."""
        if self._wait(lambda: self.status is not None or self.told_to_stop, began + self.order["timeout"]):
            self.why = "" if self.status is not None else "stopped"
        else:
            self.why = "timeout"
        if not self.why and not self.failure:
            if self._leaves() or self._wait(lambda: self.alone, time.monotonic() + LINGER):
                self._drain()
                return
            self.left = len(self._tree())
        self._signal(signal.SIGTERM)
        if not self._wait(lambda: self.alone, time.monotonic() + self.order["grace"]):
            end = time.monotonic() + HOPELESS
            while not self.alone and time.monotonic() < end:
                self._signal(signal.SIGKILL)
                self._wait(lambda: self.alone, time.monotonic() + ROUND)
        self._drain()

    def _leaves(self) -> bool:
        """Tell whether a command that ended well may leave processes behind."""
        return bool(self.order["leave"]) and not self.why

    def _wait(self, over: Callable[[], bool], deadline: float) -> bool:
        """Take what comes until `over`, or until the deadline; tell which it was."""
        self._reap()
        while not over():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for pipe, _ in self.poll.poll(left * 1000 + 1):
                self._read(pipe)
            self._reap()
        return True

    def _read(self, pipe: int) -> bool:
        """Take what is in a pipe; tell whether there was something."""
        if pipe == self.supervisor.keeper.fileno():
            self.told_to_stop |= self.supervisor.told_to_stop(self.order["id"])
            if self.supervisor.over:
                self.poll.unregister(pipe)
            return True
        try:
            data = os.read(pipe, 65_536)
        except BlockingIOError:
            return False
        stream = self.pipes.get(pipe)
        if pipe == self.supervisor.woken:
            return True
        if data and stream is not None:
            stream.add(data)
        elif data:
            self.failure += data
        else:
            self.poll.unregister(pipe)
            del self.pipes[pipe]
            os.close(pipe)
        return bool(data)

    def _drain(self) -> None:
        """Take what is left in the pipes, without waiting for more: what was left behind may hold them open."""
        for pipe in list(self.pipes):
            for _ in range(64):  # a pipe holds 64 KiB; who writes on without end is not listened to without end
                if not self._read(pipe):
                    break

    def _reap(self) -> None:
        """Take leave of every process that ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.alone = True
                return
            if pid == 0:
                return
            if pid == self.main:
                self.status = status

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to all that belongs to the command, in whatever session or group it is by now."""
        for pid in self._tree() or ([self.main] if self.status is None else []):
            try:
                os.kill(pid, number)
                if number is signal.SIGTERM:
                    os.kill(pid, signal.SIGCONT)  # what is stopped can't take leave
            except OSError:
                continue

    def _tree(self) -> list[int]:
        """Return all descendants. Everything the command started is among them: orphans become this process' own children."""
        children: dict[int, list[int]] = {}
        for pid, parent in _processes():
            children.setdefault(parent, []).append(pid)
        found, queue = [], [os.getpid()]
        while queue:
            below = children.get(queue.pop(), [])
            found += below
            queue += below
        return found

    # --- telling

    def _tell_end(self, seconds: float, alive: list[int]) -> None:
        code = signalled = None
        if self.status is not None:
            ended = os.waitstatus_to_exitcode(self.status)
            code, signalled = (ended, None) if ended >= 0 else (None, -ended)
        outputs = {name: stream.told() for name, stream in self.streams.items()}
        self._tell(code=code, signal=signalled, why=self.why, seconds=seconds, left=self.left, alive=alive, **outputs)

    def _tell(self, **result: Any) -> None:
        try:
            self.supervisor.daemon.send(json.dumps({"id": self.order["id"], **result}).encode())
        except OSError:
            return  # the daemon is gone, and nobody else wants to know


class Supervisor:
    """Runs one command after the other for the keeper, in a process of its own."""

    def __init__(self, keeper: socket.socket, daemon: socket.socket, prctl: Callable[..., int]) -> None:
        self.keeper = keeper
        self.daemon = daemon
        self.prctl = prctl
        self.woken, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.over = False
        """True when the keeper is gone, or needs this process no longer."""
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        prctl(_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> None:
        """Take orders until the keeper has none any more."""
        while not self.over:
            data = self.keeper.recv(LARGEST)
            order = json.loads(data) if data else {}
            self.over |= not data
            if "lock" in order:
                command = Command(order, self)
                command.run()
                if not command.alone:
                    return  # what was left running must not be taken for a part of the next
                self.keeper.send(b"free")

    def told_to_stop(self, ident: int) -> bool:
        """Take a message that came while a command runs; tell whether it is to be ended."""
        data = self.keeper.recv(LARGEST)
        self.over |= not data
        return self.over or json.loads(data).get("stop") == ident

    def is_alone(self) -> bool:
        """Tell whether the daemon is gone."""
        poll = select.poll()
        poll.register(self.daemon, 0)
        return bool(poll.poll(0))


def _processes() -> Iterator[tuple[int, int]]:
    """Give (process, parent) of all processes that are not zombies."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would double the time to start
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - likewise
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields and fields[0] != b"Z":
                yield int(name), int(fields[1])


def _become(order: Order, pipes: list[int], supervisor: int, prctl: Callable[..., int]) -> NoReturn:
    """Turn this process into the command, or tell through the last pipe at which step that failed."""
    out, err, report = pipes
    step = "start a session"
    try:
        os.setsid()
        step = "open /dev/null"
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.umask(order["umask"])
        for name, most in order["limits"].items():
            step = f"limit {name}"
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        step = f"become user {order['uid']} of group {order['gid']}"
        if order["uid"] is not None:
            os.setgroups([order["gid"]])
            os.setresgid(order["gid"], order["gid"], order["gid"])
            os.setresuid(order["uid"], order["uid"], order["uid"])
        step = f"go to {order['directory']}"
        os.chdir(order["directory"])
        step = "prepare"
        if not order["new_privileges"]:
            prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which would undo it
        if os.getppid() != supervisor:
            os._exit(127)
        for number in signal.valid_signals() - _KERNELS:  # Python ignores some, and whoever started the daemon may have (nohup)
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.closerange(3, report)
        os.closerange(report + 1, 1 << 20)
        step = f"execute {order['path']}"
        os.execve(order["path"], order["argv"], order["env"])  # noqa: S606 - there is no shell, on purpose
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(report, f"could not {step}: {reason}"[:500].encode(errors="replace"))
    finally:
        os._exit(127)


# --- all commands ------------------------------------------------------------------------------------------------------


class Keeper:
    """Takes orders from the daemon and hands each to a supervisor that is free, or to a new one."""

    def __init__(self, daemon: socket.socket) -> None:
        self.daemon = daemon
        self.calls: dict[int, tuple[int, socket.socket]] = {}
        """The id of a call and the way to its supervisor, by the supervisor's process; 0 for one that is free."""
        self.serving = True
        self.poll = select.poll()
        self.prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl

    def run(self) -> None:
        """Serve until the daemon closes its end or dies; then end everything."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # who stops the daemon's group gets its answer through the daemon
        woken, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(woken, select.POLLIN)
        self.poll.register(self.daemon, select.POLLIN)
        gc.disable()
        self.daemon.send(b'{"ready": true}')
        while self.serving or self.calls:
            for ready, _ in self.poll.poll():
                if ready == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif ready == self.daemon.fileno():
                    self._take()
                else:
                    self._freed(ready)

    def _take(self) -> None:
        """Take one message of the daemon; without it nothing goes on."""
        try:
            data = self.daemon.recv(LARGEST)
        except OSError:
            data = b""
        order = json.loads(data) if data else {}
        if not data:
            self.serving = False
            self.poll.unregister(self.daemon)
            for _, way in self.calls.values():
                way.shutdown(socket.SHUT_WR)
        elif "lock" in order:
            self._hand_over(order, data)
        else:
            for ident, way in self.calls.values():
                if ident == order["stop"]:
                    self._send(way, data)

    def _hand_over(self, order: Order, data: bytes) -> None:
        free = next((pid for pid, (ident, _) in self.calls.items() if ident == 0), None)
        try:
            pid = free or self._fork()
        except OSError as error:
            self._tell(id=order["id"], unstarted=f"could not fork: {error.strerror}")
            return
        way = self.calls[pid][1]
        self.calls[pid] = order["id"], way
        self._send(way, data)

    def _fork(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        pid = os.fork()
        if pid == 0:
            try:
                for way in (ours, *(way for _, way in self.calls.values())):
                    way.close()  # or nobody would see that the keeper is gone
                Supervisor(theirs, self.daemon, self.prctl).run()
                os._exit(0)
            except (OSError, ValueError, KeyError) as error:
                sys.stderr.write(f"remediator: the supervisor of a command failed: {error!r}\n")
            finally:
                os._exit(1)
        theirs.close()
        self.calls[pid] = 0, ours
        self.poll.register(ours, select.POLLIN)
        return pid

    def _freed(self, descriptor: int) -> None:
        """Note that a supervisor is free, and let it go when there are enough of those."""
        pid = next((pid for pid, (_, way) in self.calls.items() if way.fileno() == descriptor), None)
        if pid is None:
            return
        way = self.calls[pid][1]
        if not way.recv(LARGEST):
            self.poll.unregister(descriptor)  # it ends; what it leaves to tell is told when it is buried
            return
        enough = sum(ident == 0 for ident, _ in self.calls.values()) >= MOST_FREE
        self.calls[pid] = _LEAVING if enough else 0, way
        if enough:
            way.shutdown(socket.SHUT_WR)

    def _reap(self) -> None:
        """Take leave of supervisors that ended; one that did not end by itself told nothing."""
        while self.calls:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            ident, way = self.calls.pop(pid)
            with suppress(KeyError):
                self.poll.unregister(way)
            way.close()
            if status != 0 and ident > 0:
                self._tell(id=ident, lost="its supervisor was ended by somebody else")

    def _send(self, way: socket.socket, data: bytes) -> None:
        try:
            way.send(data)
        except OSError:
            return  # it ended, and its burial tells what became of the call

    def _tell(self, **message: Any) -> None:
        try:
            self.daemon.send(json.dumps(message).encode())
        except OSError:
            return  # the daemon is gone


if __name__ == "__main__":
    Keeper(socket.socket(fileno=int(sys.argv[1]))).run()
