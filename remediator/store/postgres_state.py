"""What one batch of transactions knows: rows it read, as its units have changed them, and what is to be written.

Pure. A unit sees its predecessors' changes here, and one that fails is taken back here, so that neither costs a round trip. What is
not known yet is named as `Keys`, to be loaded in one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from remediator import audit
from remediator.model import Episode
from remediator.records import Approval, Attempt, Incident, Message, Pause, Run, Signal, Use
from remediator.store.rows import from_micros, unpack, unpack_attempt, unpack_run

Subject = tuple[str, str]
"""(rule, target)"""

_MISSING = object()
_NEVER = from_micros(0)
_ESCAPED = {"0": "\0", "\\": "\\"}


@dataclass
class Keys:
    """What is to be loaded. Spans are microseconds."""

    approvals: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    active: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    latest: set[Subject] = field(default_factory=set)
    incidents: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)
    locks: set[str] = field(default_factory=set)
    lock_prefixes: set[str] = field(default_factory=set)
    usage: set[Subject] = field(default_factory=set)
    window: int = 0
    days: set[str] = field(default_factory=set)
    opened: int = 0
    opened_most: int = 0
    attempts: set[str] = field(default_factory=set)
    attempts_window: int = 0

    def __bool__(self) -> bool:
        return any(vars(self).values())


class MissingKeys(Exception):
    """A unit's writing needs rows that were not loaded."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self.keys = keys


@dataclass(frozen=True)
class RunRow:
    """A run with the columns that are not its record's. `body` is set once it has to be written."""

    run: Run
    worker: str | None = None
    until: int = 0
    woken: bool = False
    body: bytes | None = None


@dataclass(frozen=True)
class ChainHead:
    """The end of a chain. `sealed`: it is on its way to an archive, and takes nothing more."""

    seq: int
    hash: str
    sealed: bool = False


@dataclass
class Writes:
    """What is to be written, by key; the last value counts. Emptied by each flush."""

    episodes: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    incidents: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    new_runs: dict[str, bool] = field(default_factory=dict)
    runs: dict[str, bool] = field(default_factory=dict)
    leased: dict[str, bool] = field(default_factory=dict)
    """Runs whose lease changed."""
    wakes: dict[str, bool] = field(default_factory=dict)
    """Runs to wake that are not loaded."""
    approvals: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    consumed: dict[str, bool] = field(default_factory=dict)
    signals: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    locks: dict[str, str | None] = field(default_factory=dict)
    holders: dict[str, str | None] = field(default_factory=dict)
    """Who has now, of the locks not in `locks`, those that a run had: another one, or none."""
    uses: dict[str, Use] = field(default_factory=dict)
    messages: dict[str, tuple[Message, bytes]] = field(default_factory=dict)
    cancelled: dict[str, bool] = field(default_factory=dict)
    due: dict[str, bool] = field(default_factory=dict)
    pauses: dict[str, bytes | None] = field(default_factory=dict)
    era: dict[str, str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    recovered: dict[str, int] = field(default_factory=dict)
    relapsed: dict[str, int] = field(default_factory=dict)
    events: dict[tuple[str, int], tuple[str, bytes]] = field(default_factory=dict)
    chains: dict[str, ChainHead] = field(default_factory=dict)
    checkpointed: dict[str, bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass
class State:
    """The rows a batch knows. A value of None: there is no such row. Changed through `set` and `drop` only, which can be taken back."""

    now: datetime = _NEVER
    micros: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    pauses: dict[str, Pause] = field(default_factory=dict)
    era: dict[str, str] = field(default_factory=dict)
    """The store's era, under its own name."""
    set_back: int = 0
    episodes: dict[str, Episode | None] = field(default_factory=dict)
    """The newest by fingerprint."""
    incidents: dict[str, Incident | None] = field(default_factory=dict)
    latest: dict[Subject, str | None] = field(default_factory=dict)
    runs: dict[str, RunRow | None] = field(default_factory=dict)
    active: dict[str, bool] = field(default_factory=dict)
    """Incidents whose active runs are all known."""
    of_incident: dict[str, tuple[str, ...]] = field(default_factory=dict)
    approvals: dict[str, Approval | None] = field(default_factory=dict)
    signals: dict[str, tuple[Signal, ...]] = field(default_factory=dict)
    locks: dict[str, str | None] = field(default_factory=dict)
    lock_prefixes: dict[str, bool] = field(default_factory=dict)
    """Beginnings below which all held locks are known."""
    uses: dict[str, Use] = field(default_factory=dict)
    uses_of_rule: dict[str, dict[str, None]] = field(default_factory=dict)
    """Runs that may have a use of a rule; `uses` says whether they do."""
    usage: dict[Subject, int] = field(default_factory=dict)
    """How far back the uses of each subject are known."""
    written: dict[Subject, datetime | None] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    opened: dict[int | str, tuple[int, str]] = field(default_factory=dict)
    """When runs were made, and their incidents: loaded ones by their place, new ones by their id."""
    opened_loaded: tuple[int, int] = (0, 0)
    """How far back, and how many at most, `opened` was loaded."""
    attempts: dict[str, tuple[int, tuple[Attempt, ...]]] = field(default_factory=dict)
    """Tried attempts by rule, newest first, and how far back they are known."""
    writes: Writes = field(default_factory=Writes)
    assume_new: bool = True
    """Whether runs and chains that belong to rows just made are taken for new; the tables' keys tell when that is wrong."""
    _journal: list[tuple[dict[Any, Any], Any, Any]] = field(default_factory=list)

    # --- changing, and taking it back

    def set(self, rows: dict[Any, Any], key: Any, value: Any) -> None:
        """Change a row of one of this state's tables."""
        self._journal.append((rows, key, rows.get(key, _MISSING)))
        rows[key] = value

    def drop(self, rows: dict[Any, Any], key: Any) -> None:
        """Forget a row: it is loaded again when somebody asks for it."""
        if key in rows:
            self._journal.append((rows, key, rows.pop(key)))

    def keep(self) -> None:
        """Let the unit's changes stand."""
        self._journal.clear()

    def undo(self) -> None:
        """Take the unit's changes back."""
        for rows, key, before in reversed(self._journal):
            if before is _MISSING:
                rows.pop(key, None)
            else:
                rows[key] = before
        self._journal.clear()

    def flushed(self) -> Writes:
        """Return what is to be written, and begin a new list."""
        writes, self.writes = self.writes, Writes()
        return writes

    # --- taking in what was loaded

    def take(self, keys: Keys, rows: Iterable[Sequence[Any]]) -> None:
        """Take in rows that the database gave for `keys`; what it did not give is not there."""
        found: dict[str, list[Any]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(row)
        now = found["now"][0]
        if not self.micros:
            self.micros, self.now = now[2], from_micros(now[2])
        self.counts = {"acting": now[3]}
        self.pauses = {pause.scope: pause for pause in (unpack(Pause, row[7]) for row in found.get("pause", ()))}
        self.era = {row[0]: plain(row[1]) for row in found.get("era", ())}
        self.set_back = sum(row[2] for row in found.get("era", ()))
        self._take_rows(keys, found)
        self._take_usage(keys, found)
        self._take_rest(keys, found)

    def _take_rows(self, keys: Keys, found: Mapping[str, list[Any]]) -> None:
        self.incidents |= dict.fromkeys(keys.incidents | keys.active) | {
            plain(row[1]): unpack(Incident, row[7]) for row in found.get("incident", ())
        }
        self.approvals |= dict.fromkeys(keys.approvals) | {plain(row[1]): unpack(Approval, row[7]) for row in found.get("approval", ())}
        self.episodes |= dict.fromkeys(keys.fingerprints) | {plain(row[1]): unpack(Episode, row[7]) for row in found.get("episode", ())}
        self.runs |= dict.fromkeys(keys.runs)
        for row in found.get("run", ()):
            run = unpack_run(row[7], row[2], row[3])
            self.runs[run.id] = RunRow(run, plain(row[5]), row[4], row[6] is not None)
            self.index(run)
            self.incidents.setdefault(run.incident, None)
            if run.id in keys.runs:
                self._close(run)
        self.active |= dict.fromkeys(keys.active, True)
        signals: dict[str, tuple[Signal, ...]] = dict.fromkeys(keys.runs, ())
        for row in found.get("signal", ()):
            signals[plain(row[1])] += (unpack(Signal, row[7]),)
        self.signals |= signals

    def _close(self, run: Run) -> None:
        """Note what the database would have given along with a run."""
        incident = self.incidents[run.incident]
        if incident is not None:
            self.episodes.setdefault(incident.subject.fingerprint, None)
        if run.approval is not None:
            self.approvals.setdefault(run.approval, None)

    def index(self, run: Run) -> None:
        """Note that an incident has this run."""
        known = self.of_incident.get(run.incident, ())
        if run.id not in known:
            self.set(self.of_incident, run.incident, (*known, run.id))

    def _take_usage(self, keys: Keys, found: Mapping[str, list[Any]]) -> None:
        for row in found.get("use", ()):
            self.use(Use(plain(row[1]), plain(row[5]), plain(row[6]), from_micros(row[2])))
        self.usage |= dict.fromkeys(keys.usage, keys.window)
        self.written |= dict.fromkeys(keys.usage) | {
            (plain(row[1]), plain(row[5])): from_micros(row[2]) for row in found.get("written", ())
        }

    def use(self, use: Use) -> None:
        """Note a use, under its rule."""
        self.set(self.uses, use.run, use)
        self.uses_of_rule.setdefault(use.rule, {})[use.run] = None

    def _take_rest(self, keys: Keys, found: Mapping[str, list[Any]]) -> None:
        self.latest |= dict.fromkeys(keys.latest) | {(plain(row[1]), plain(row[5])): plain(row[6]) for row in found.get("latest", ())}
        self.locks |= dict.fromkeys(keys.locks) | {plain(row[1]): plain(row[5]) for row in found.get("lock", ())}
        self.lock_prefixes |= dict.fromkeys(keys.lock_prefixes, True)
        self.days |= {row[1]: row[2] or 0 for row in found.get("day", ())}
        for name in keys.chains | keys.incidents | keys.active:
            self.heads.setdefault(name, ChainHead(0, audit.genesis(name)))
        self.heads |= {plain(row[1]): ChainHead(row[2], row[5], bool(row[4])) for row in found.get("chain", ())}
        for incident in (plain(row[1]) for row in found.get("incident", ())):
            self.heads.setdefault(incident, ChainHead(0, audit.genesis(incident)))
        if keys.opened:
            self.opened = {place: (row[2], plain(row[1])) for place, row in enumerate(found.get("opened", ()))}
            self.opened_loaded = (keys.opened, keys.opened_most)
        attempts: dict[str, list[Attempt]] = {name: [] for name in keys.attempts}
        for row in found.get("attempt", ()):
            attempts[plain(row[5])].append(unpack_attempt(row[7], row[3], row[4]))
        for name, own in attempts.items():
            own.sort(key=lambda attempt: (attempt.ended_at, attempt.run), reverse=True)
            self.attempts[name] = (keys.attempts_window, tuple(own))
        self.keep()


def stored(text: str) -> str:
    r"""Write text so that PostgreSQL can hold it. Raises ValueError for text that is not Unicode.

    >>> stored("a\0b")
    'a\\0b'
    """
    if not text.isascii():
        text.encode()
    return text.replace("\\", "\\\\").replace("\0", "\\0") if "\\" in text or "\0" in text else text


def plain(text: Any) -> Any:
    """Read what `stored` wrote; None stays None."""
    if text is None or "\\" not in text:
        return text
    parts = iter(text)
    return "".join(_ESCAPED[next(parts)] if one == "\\" else one for one in parts)
