"""The daemon itself as a real process: its own settings, packs, tokens and store in a directory, on a free loopback port.

daemon = DaemonProcess(directory, {"dry_run": False}, rules=RULES)
async with daemon:
    await daemon.post(alert("SiteDown"))
    ...
    await daemon.restart(kill=True)       # SIGKILL, then the same store again
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import aiohttp
import yaml

from tests.servers.ports import eventually, free_port

ROLES = ("alert_sender", "viewer", "responder", "approver", "rule_editor", "admin")
"""One identity each; its name is the role's."""


class RefusedError(Exception):
    """The daemon answered with a problem document."""

    def __init__(self, status: int, problem: Any) -> None:
        super().__init__(f"{status}: {problem}")
        self.status = status
        self.problem = problem


@dataclass(frozen=True)
class Answer:
    """One raw HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


# --- webhooks ------------------------------------------------------------------------------------------------------------


def alert(
    name: str, *, firing: bool = True, started: datetime | None = None, ended: datetime | None = None, **labels: str
) -> dict[str, Any]:
    """Return one alert as Alertmanager sends it; it started a minute ago unless told otherwise."""
    starts = started or datetime.now(UTC) - timedelta(minutes=1)
    ends = ended or datetime.now(UTC)
    return {
        "status": "firing" if firing else "resolved",
        "labels": {"alertname": name, **labels},
        "annotations": {"summary": f"{name} in a test"},
        "startsAt": starts.isoformat(),
        "endsAt": "0001-01-01T00:00:00Z" if firing else ends.isoformat(),
        "generatorURL": "http://prometheus.example.com/graph",
    }


def webhook(*alerts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a webhook's body, version 4."""
    status = "firing" if any(one["status"] == "firing" for one in alerts) else "resolved"
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": r"web\.hook",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.com",
        "alerts": list(alerts),
        **more,
    }


# --- the process ---------------------------------------------------------------------------------------------------------


class DaemonProcess:
    """One daemon. Use with `async with`, or `start` and `stop`; started again it has the port, store and tokens that it had.

    `settings` are merged over what every test needs (store, port, one identity a role). `rules` is the text of one rule file;
    `packs` are whole packs as {name: {file: text}}. `environment` is added to the process's, `prefix` goes before its command.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        rules: str = "rules: []",
        packs: Mapping[str, Mapping[str, str]] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.environment = {**os.environ, **(environment or {})}
        self.prefix = list(prefix)
        self.tokens = {role: secrets.token_urlsafe(24) for role in ROLES}
        self.process: subprocess.Popen[bytes] | None = None
        self.output: IO[bytes] | None = None
        """Where it writes to instead of `log_file`."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, files in (packs or {"test": {"rules.yaml": rules}}).items():
            for file, text in {"pack.yaml": "description: for a test\n", **files}.items():
                self.write_rules(text, pack=name, file=file)
        self.settings = _merged(self._basics(packs or {"test": {}}), settings or {})
        self.write_settings()

    def _basics(self, packs: Mapping[str, Any]) -> dict[str, Any]:
        hashes = {role: hashlib.sha256(token.encode()).hexdigest() for role, token in self.tokens.items()}
        return {
            "store": {"url": f"sqlite://{self.store}"},
            "listen": {"port": self.port},
            "dry_run": False,
            "reconciliation": {"settle": "0s"},  # a test's Alertmanager is young, and was told of all that fires
            "storm": {"incidents": 10_000},  # tests open many incidents at once; those of storms say how many are too many
            "identities": {role: {"token_sha256": [found], "roles": [role]} for role, found in hashes.items()},
            "packs": {name: {"path": f"packs/{name}"} for name in packs},
        }

    # --- files

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.directory / "remediator.yaml"

    @property
    def store(self) -> Path:
        """The SQLite file, unless the settings name another one."""
        return self.directory / "state" / "state.sqlite"

    @property
    def log_file(self) -> Path:
        """What all its processes wrote to stdout and stderr."""
        return self.directory / "daemon.log"

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def write_settings(self, **changes: Any) -> None:
        """Write the settings file, with top-level sections merged in."""
        self.settings = _merged(self.settings, changes)
        self.store.parent.mkdir(exist_ok=True)
        self.config.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def write_rules(self, text: str, *, pack: str = "test", file: str = "rules.yaml") -> Path:
        """Write one file of a pack; the new text appears at once, as editors and configuration management do it."""
        path = self.directory / "packs" / pack / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_text(text)
        draft.rename(path)
        return path

    # --- life

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        return [*self.prefix, sys.executable, "-m", "remediator.cli", "serve", "--config", str(self.config)]

    def launch(self) -> None:
        """Start the process without waiting for anything."""
        with self.log_file.open("ab") as file:
            output = self.output or file
            self.process = subprocess.Popen(
                self.argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=self.environment, cwd=ROOT
            )

    async def start(self, *, within: float = 20.0) -> Self:
        """Start it and wait until it is ready. Raises `AssertionError` with its output when it is not."""
        self.launch()
        process = self._running()

        async def is_ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the daemon ended with {process.returncode}:\n{self.log[-4000:]}")
            try:
                return (await self.request("GET", "/-/ready", who=None)).status == 200
            except aiohttp.ClientError:
                return False

        try:
            await eventually(is_ready, what=f"the daemon is ready; its log ends\n{self.log[-2000:]}", within=within)
        except AssertionError:
            self.kill()
            raise
        return self

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "the daemon has not been started"
        return self.process

    def kill(self) -> None:
        """End it with SIGKILL, as the kernel or a failing machine would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stop(self, *, within: float = 30.0) -> int:
        """End it orderly; return its exit code."""
        process = self._running()
        process.terminate()
        try:
            return await asyncio.to_thread(process.wait, within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not end within {within} s:\n{self.log[-2000:]}") from None

    async def restart(self, *, kill: bool = False) -> Self:
        """End it, orderly or with SIGKILL, and start it on the same store."""
        if kill:
            self.kill()
        else:
            await self.stop()
        return await self.start()

    async def run_to_end(self, *, within: float = 20.0) -> tuple[int, str]:
        """Start it where it is expected to refuse; return its exit code and what this process wrote."""
        before = len(self.log)
        self.launch()
        try:
            code = await asyncio.to_thread(self._running().wait, within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon should have refused to start, but runs:\n{self.log[before:]}") from None
        return code, self.log[before:]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._running().send_signal(number)

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def rss(self) -> int:
        """Bytes of resident memory now."""
        return self._memory("VmRSS")

    @property
    def peak_rss(self) -> int:
        """The most bytes of resident memory that it ever had."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self._running().pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            sys.stderr.write(f"--- the daemon's log\n{self.log[-6000:]}\n")
        if self.running:
            self.kill() if kind is not None else await self.stop()

    # --- talking to it

    async def request(
        self, method: str, path: str, body: Any = None, *, who: str | None = "admin", within: float = 30.0, **more: Any
    ) -> Answer:
        """Make one request and return the raw answer. `bytes` are sent as they are, anything else as JSON."""
        headers = {"Content-Type": "application/json", **more.pop("headers", {})} if body is not None else more.pop("headers", {})
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        limit = aiohttp.ClientTimeout(total=within)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.request(method, f"{self.url}{path}", data=data, headers=headers, **more) as answer,
        ):
            return Answer(answer.status, dict(answer.headers), await answer.read())

    async def call(self, method: str, path: str, body: Any = None, *, who: str = "admin") -> Any:
        """Call the API and return the JSON answer. Raises `RefusedError`."""
        answer = await self.request(method, path, body, who=who)
        if answer.status >= 400:
            raise RefusedError(answer.status, answer.json)
        return answer.json

    async def get(self, path: str, *, who: str = "admin") -> Any:
        """GET below /api/v1/ and return the JSON answer. Raises `RefusedError`."""
        return await self.call("GET", f"/api/v1/{path}", who=who)

    async def post(self, *alerts: Mapping[str, Any]) -> Any:
        """Send a webhook and return the answer. Raises `RefusedError`."""
        return await self.call("POST", "/api/v1/alerts", webhook(*alerts), who="alert_sender")

    async def command(self, *arguments: str, who: str = "admin", within: float = 30.0) -> tuple[int, str]:
        """Run the command line as somebody; return its exit status and what it printed."""
        environment = {**os.environ, "REMEDIATOR_URL": self.url, "REMEDIATOR_TOKEN": self.tokens[who], "NO_COLOR": "1", "COLUMNS": "200"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "remediator.cli", *arguments),
            env=environment,
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(within):
            output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace")

    async def metric(self, name: str, **labels: str) -> float:
        """Return one sample of /metrics. Raises KeyError when there is none."""
        text = (await self.request("GET", "/metrics", who=None)).body.decode()
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and all(f'{key}="{label}"' in rest for key, label in labels.items()):
                return float(value)
        raise KeyError(name)

    # --- following

    async def incidents(self) -> list[dict[str, Any]]:
        """List all incidents, newest first."""
        found: list[dict[str, Any]] = []
        query = "incidents?limit=1000"
        while True:
            page = await self.get(query)
            found += page["items"]
            if page["next"] is None:
                return found
            query = f"incidents?limit=1000&before={page['next']}"

    async def runs(self, incident: str) -> list[dict[str, Any]]:
        """List an incident's runs, newest first."""
        found: list[dict[str, Any]] = (await self.get(f"runs?incident={incident}&limit=1000"))["items"]
        return found

    async def run(self, run: str) -> dict[str, Any]:
        """One run with facts and steps."""
        found: dict[str, Any] = await self.get(f"runs/{run}")
        return found

    async def events(self, chain: str, kind: str = "") -> list[dict[str, Any]]:
        """List a chain's events, all or of one kind."""
        found: list[dict[str, Any]] = (await self.get(f"events?chain={chain}&limit=1000"))["items"]
        return [event for event in found if not kind or event["kind"] == kind]

    async def event(self, chain: str, kind: str, *, within: float = 20.0) -> dict[str, Any]:
        """Wait for an event and return the newest of its kind."""
        found: dict[str, Any] = (await self.until(lambda: self.events(chain, kind), what=f"{kind} in {chain}", within=within))[-1]
        return found

    async def until(self, get: Callable[[], Awaitable[Any]], *, what: str, within: float = 20.0) -> Any:
        """Wait until `get` gives something true, and return it. Raises `AssertionError`."""
        found: list[Any] = []

        async def there() -> bool:
            found[:] = [await get()]
            return bool(found[0])

        await eventually(there, what=what, within=within, every=0.05)
        return found[0]

    async def opened(self, *, rule: str, within: float = 20.0, **labels: str) -> dict[str, Any]:
        """Wait for the incident of a rule whose subject has `labels`; return it whole."""

        async def find() -> dict[str, Any] | None:
            for one in (await self.get(f"incidents?rule={rule}&limit=1000"))["items"]:
                whole: dict[str, Any] = await self.get(f"incidents/{one['id']}")
                if labels.items() <= whole["subject"]["labels"].items():
                    return whole
            return None

        found: dict[str, Any] = await self.until(find, what=f"an incident of {rule} with {labels}", within=within)
        return found

    async def reaches(self, run: str, *states: str, within: float = 20.0) -> dict[str, Any]:
        """Wait until a run is in one of `states`; return it whole. Raises `AssertionError` saying where it is instead."""
        last: dict[str, Any] = {}

        async def there() -> bool:
            try:
                last.update(await self.run(run))
            except RefusedError as error:
                if error.status != 404:
                    raise
            return last.get("state") in states

        try:
            await eventually(there, what=f"run {run} is {' or '.join(states)}", within=within, every=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {last.get('state')}: {last.get('reason')}") from None
        return last

    async def asked(self, run: str, *, within: float = 20.0) -> dict[str, Any]:
        """Wait until a run waits for an approval, and return the approval."""
        found = await self.reaches(run, "awaiting_approval", within=within)
        approval: dict[str, Any] = (await self.get(f"approvals/{found['approval']}"))["approval"]
        return approval

    async def approve(self, run: str, *, who: str = "approver", within: float = 20.0) -> dict[str, Any]:
        """Wait until a run waits for an approval, and give it."""
        approval = await self.asked(run, within=within)
        body = {"decision": "approve", "plan_hash": approval["plan_hash"], "comment": "a test agrees"}
        decided: dict[str, Any] = await self.call("POST", f"/api/v1/approvals/{approval['id']}", body, who=who)
        return decided

    async def audit_holds(self) -> bool:
        """Tell whether every chain verifies."""
        report = await self.get("audit/verify")
        assert report["faults"] == [], report
        return bool(report["chains"])


ROOT = Path(__file__).resolve().parents[2]


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(base))
    for key, value in more.items():
        known = found.get(key)
        found[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else copy.deepcopy(value)
    return found
