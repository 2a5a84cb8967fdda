"""The audit chain: whatever is changed, removed, swapped, added or cut off is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator import audit
from remediator.errors import StoreCorrupt
from remediator.model import ChainedEvent, Event, canonical
from remediator.records import SYSTEM_CHAIN
from tests.builders import faults_of

AT = datetime(2026, 11, 21, 12, 0, 0, 5, tzinfo=UTC)

texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
times = st.datetimes(timezones=st.just(UTC))
datas = st.dictionaries(texts, values, max_size=4)
contents = st.lists(st.tuples(texts, times, datas, texts), min_size=2, max_size=6)


def chain_event(event: Event, *, seq: int, previous: str) -> ChainedEvent:
    """Put an event at its place in its chain."""
    return audit.seal(event, seq=seq, previous=previous)[0]


def chained(chain: str, contents: Sequence[tuple[str, datetime, dict[str, Any], str]]) -> list[ChainedEvent]:
    """Chain events of the given kinds, times, data and actors."""
    events: list[ChainedEvent] = []
    head = audit.empty(chain)
    for kind, at, data, actor in contents:
        events.append(chain_event(Event(chain, kind, at, data, actor), seq=head.count + 1, previous=head.hash))
        head = audit.Head(chain, events[-1].seq, events[-1].hash)
    return events


def head_of(events: Sequence[ChainedEvent]) -> audit.Head:
    return audit.Head(events[-1].chain, events[-1].seq, events[-1].hash)


def simple(chain: str = "INC-1", count: int = 4) -> list[ChainedEvent]:
    return chained(chain, [("run.moved", AT, {"n": number}, "remediator") for number in range(count)])


def exported(*chains: Sequence[ChainedEvent]) -> list[bytes]:
    export = audit.Export()
    return [*(export.line(event) for chain in chains for event in chain), export.end()]


# --- chaining ------------------------------------------------------------------------------------------------------------


def test_the_hash_covers_canonical_json_of_all_fields_and_the_previous_hash() -> None:
    """The documented form: SHA-256 over canonical JSON, so that anybody can verify it with a few lines in any language."""
    event = chain_event(Event("INC-1", "run.queued", AT, {"b": 1, "a": "ü"}, "ann"), seq=1, previous=audit.genesis("INC-1"))
    whole = {
        "actor": "ann",
        "at": "2026-11-21T12:00:00.000005+00:00",
        "chain": "INC-1",
        "data": {"a": "ü", "b": 1},
        "kind": "run.queued",
        "previous": hashlib.sha256(b"remediator audit chain\nINC-1").hexdigest(),
        "seq": 1,
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert event.hash == hashlib.sha256(text).hexdigest()
    assert audit.body_of(event) == text


def test_each_chain_begins_at_its_own_genesis() -> None:
    """The first event of one chain can't be moved to another."""
    assert audit.genesis("a") != audit.genesis("b")


def test_times_are_written_in_utc() -> None:
    """The same moment in another zone gives the same hash."""
    event = Event("a", "k", AT)
    other = Event("a", "k", AT.astimezone(timezone(timedelta(hours=5))))
    assert chain_event(event, seq=1, previous="p").hash == chain_event(other, seq=1, previous="p").hash


def test_a_time_without_zone_is_refused() -> None:
    """A naive time would mean another moment elsewhere."""
    with pytest.raises(ValueError, match="without zone"):
        chain_event(Event("a", "k", datetime(2026, 1, 1)), seq=1, previous="p")  # noqa: DTZ001


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": float("inf")}])
def test_numbers_without_json_are_refused(data: dict[str, Any]) -> None:
    """NaN has no JSON; two readers would disagree on it."""
    with pytest.raises(ValueError, match="JSON"):
        chain_event(Event("a", "k", AT, data), seq=1, previous="p")


def test_keys_that_are_not_text_become_text_before_they_are_hashed() -> None:
    """Numbers as keys sort otherwise than their texts; reading the event back must not look like forgery."""
    event, body = audit.seal(Event("a", "k", AT, {"by_code": {10: "x", 9: "y"}}), seq=1, previous=audit.genesis("a"))
    assert event.data == {"by_code": {"10": "x", "9": "y"}}
    assert faults_of([audit.read_body(body, hash=event.hash)], "a") == []


@given(texts, contents)
def test_an_untouched_chain_has_no_faults(chain: str, contents: list[Any]) -> None:
    """Whatever text, numbers and times are in it; also when it is read in two parts, and after a round trip through its bodies."""
    events = chained(chain, contents)
    assert faults_of(events, chain, upto=head_of(events)) == []
    assert faults_of(events[1:], chain, after=head_of(events[:1])) == []
    again = [audit.read_body(audit.body_of(event), hash=event.hash) for event in events]
    assert faults_of(again, chain) == []
    assert again == events


# --- forging a chain -------------------------------------------------------------------------------------------------------

FORGERIES: dict[str, Callable[[ChainedEvent], ChainedEvent]] = {
    "chain": lambda event: replace(event, chain=event.chain + "x"),
    "seq": lambda event: replace(event, seq=event.seq + 1),
    "kind": lambda event: replace(event, kind=event.kind + "x"),
    "at": lambda event: replace(event, at=event.at.replace(microsecond=(event.at.microsecond + 1) % 1_000_000)),
    "data": lambda event: replace(event, data={**event.data, "added by somebody": 1}),
    "actor": lambda event: replace(event, actor=event.actor + "x"),
    "previous": lambda event: replace(event, previous=event.previous[::-1] + "0"),
    "hash": lambda event: replace(event, hash=hashlib.sha256(event.hash.encode()).hexdigest()),
}


@given(contents, st.sampled_from(sorted(FORGERIES)), st.data())
def test_a_change_of_any_field_is_found(contents: list[Any], field: str, data: st.DataObject) -> None:
    """One field of one event changed: the chain does not hold."""
    events = chained("INC-1", contents)
    place = data.draw(st.integers(0, len(events) - 1))
    forged = [*events[:place], FORGERIES[field](events[place]), *events[place + 1 :]]
    assert faults_of(forged, "INC-1", upto=head_of(events)) != []


@given(contents, st.data())
def test_an_event_changed_together_with_its_hash_is_found(contents: list[Any], data: st.DataObject) -> None:
    """A forger who computes the hash anew is betrayed by the next event, or by the recorded head."""
    events = chained("INC-1", contents)
    place = data.draw(st.integers(0, len(events) - 1))
    old = events[place]
    forged = chain_event(Event(old.chain, old.kind + "x", old.at, old.data, old.actor), seq=old.seq, previous=old.previous)
    assert faults_of([*events[:place], forged, *events[place + 1 :]], "INC-1", upto=head_of(events)) != []


@given(contents, st.data())
def test_removal_swap_insertion_and_truncation_are_found(contents: list[Any], data: st.DataObject) -> None:
    """Against a recorded head no event can go, come, or change places."""
    events = chained("INC-1", contents)
    place = data.draw(st.integers(0, len(events) - 1))
    other = data.draw(st.integers(0, len(events) - 1).filter(lambda n: n != place))
    swapped = list(events)
    swapped[place], swapped[other] = swapped[other], swapped[place]
    removed = events[:place] + events[place + 1 :]
    inserted = [*events[:place], events[other], *events[place:]]
    for forged in (swapped, removed, inserted, events[: len(events) - 1], [*events, *simple("INC-1", 1)]):
        assert faults_of(forged, "INC-1", upto=head_of(events)) != []


def test_one_missing_event_is_reported_once() -> None:
    """A gap is not repeated for every event after it, so that the report says where to look."""
    events = simple(count=50)
    faults = faults_of(events[:10] + events[11:], "INC-1")
    assert len(faults) == 2
    assert all("event 11" in fault for fault in faults)


def test_events_of_another_chain_are_found() -> None:
    """A whole valid chain shown as another one does not pass."""
    assert faults_of(simple("INC-2"), "INC-1") != []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"\xff", b'"x"', b"[" * 100_000, audit.body_of(simple()[0]).replace(b'"seq":1', b'"seq":"1"'), b"null"]
)
def test_a_body_that_is_no_event_is_a_fault_and_no_crash(body: bytes) -> None:
    """Garbage with a right hash is reported like any forgery."""
    digest = hashlib.sha256(body).hexdigest()
    _, faults = audit.follow(audit.empty("a"), [(digest, body)])
    assert faults
    with pytest.raises(StoreCorrupt):
        audit.read_body(body, hash=digest)


# --- checkpoints --------------------------------------------------------------------------------------------------------------


def with_checkpoint(*chains: Sequence[ChainedEvent]) -> list[ChainedEvent]:
    """Return a system chain whose second event is a checkpoint over `chains`."""
    point = audit.checkpoint([head_of(chain) for chain in chains], at=AT)
    return chained(SYSTEM_CHAIN, [("daemon.started", AT, {}, "remediator"), (point.kind, AT, dict(point.data), point.actor)])


def test_a_checkpoint_gives_back_its_heads() -> None:
    """What is put in comes out, and other events hold none."""
    system = with_checkpoint(simple("a"), simple("b", 2))
    assert audit.checkpointed(system[1]) == (head_of(simple("a")), head_of(simple("b", 2)))
    assert audit.checkpointed(system[0]) == ()
    assert audit.checkpointed(replace(system[1], chain="a")) == ()


@pytest.mark.parametrize("data", [{}, {"chains": 1}, {"chains": {"a": 1}}, {"chains": {"a": ["x", "y"]}}, {"chains": {"a": [1]}}])
def test_a_checkpoint_that_can_not_be_read_is_an_error(data: dict[str, Any]) -> None:
    """It must not count as one that claims nothing."""
    (event,) = chained(SYSTEM_CHAIN, [(audit.CHECKPOINT, AT, data, "remediator")])
    with pytest.raises(StoreCorrupt):
        audit.checkpointed(event)
    assert audit.verify_export(exported([event])).faults != ()


def test_s22_a_missing_shorter_or_rewritten_chain_is_found_by_its_checkpoint() -> None:
    """Semantics 22: a chain may grow after a checkpoint, but not vanish, shrink or change, however well its hashes are made."""
    one, two = simple("INC-1"), simple("INC-2")
    system = with_checkpoint(one, two)
    assert audit.verify_export(exported(one, simple("INC-2", 6), system)).faults == ()
    assert audit.verify_export(exported(one, system)).faults == ("INC-2: a checkpoint counted 4 events, event 4 is missing",)
    assert audit.verify_export(exported(one, two[:3], system)).faults == ("INC-2: a checkpoint counted 4 events, event 4 is missing",)
    rewritten = chained("INC-2", [("run.moved", AT, {"n": "forged"}, "remediator")] * 4)
    assert audit.verify_export(exported(one, rewritten, system)).faults == (
        "INC-2 event 4: is not the one that a checkpoint recorded; it was rewritten",
    )


def test_s22_an_anchor_kept_outside_shows_that_the_system_chain_was_cut() -> None:
    """Semantics 22: who cuts the checkpoints off too is found with the newest checkpoint kept elsewhere."""
    one = simple("INC-1")
    system = with_checkpoint(one)
    forged = exported(one[:2], system[:1])
    assert audit.verify_export(forged).faults == ()
    assert audit.verify_export(forged, anchors=[audit.anchor(system[1])]).faults != ()
    assert audit.verify_export(exported(one, system), anchors=[audit.anchor(system[1])]).faults == ()


# --- export files ----------------------------------------------------------------------------------------------------------------


def test_an_export_line_is_json_and_its_hash_is_checked_by_cutting_it_out() -> None:
    """A line is the hashed body with the hash put in front."""
    event = simple()[0]
    line = audit.export_line(event)
    assert json.loads(line) == {**json.loads(audit.body_of(event)), "hash": event.hash}
    body = line.rstrip(b"\n").replace(b'"hash":"' + event.hash.encode() + b'",', b"", 1)
    assert hashlib.sha256(body).hexdigest() == event.hash


def test_an_export_is_counted() -> None:
    """Verifying tells how much it saw, so that an empty file does not pass for a good one."""
    one = simple("INC-1")
    findings = audit.verify_export(exported(one, with_checkpoint(one)))
    assert findings == audit.Findings(chains=2, events=6, checkpoints=1, faults=())
    assert audit.verify_export([]).faults == ("the export is cut off after 0 events: its last line is missing",)


EXPORT = exported(simple("INC-1"), with_checkpoint(simple("INC-1")))
TEXT = b"".join(EXPORT)


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_a_change_of_any_byte_of_an_export_is_found(place: int, flip: int) -> None:
    """One byte, whichever: white space, a quote, a digit of a hash, a line's end."""
    forged = bytearray(TEXT)
    forged[place] ^= flip
    assert audit.verify_export(bytes(forged).splitlines(keepends=True)).faults != ()


@given(st.integers(0, len(TEXT) - 1), st.binary(min_size=1, max_size=3))
def test_bytes_put_into_an_export_are_found(place: int, added: bytes) -> None:
    """Also blank lines and spaces, which JSON would not mind."""
    assert audit.verify_export((TEXT[:place] + added + TEXT[place:]).splitlines(keepends=True)).faults != ()


@given(st.integers(0, len(TEXT) - 1))
def test_a_cut_export_is_found(length: int) -> None:
    """At any byte, the ends of lines included."""
    assert audit.verify_export(TEXT[:length].splitlines(keepends=True)).faults != ()


@given(st.permutations(range(len(EXPORT))))
def test_lines_in_another_order_are_found(order: list[int]) -> None:
    """The last line covers the order of all others."""
    faults = audit.verify_export([EXPORT[place] for place in order]).faults
    assert (faults == ()) == (order == sorted(order))


@given(st.integers(0, len(EXPORT) - 1), st.integers(0, len(EXPORT) - 1))
def test_a_line_removed_or_doubled_is_found(place: int, other: int) -> None:
    """Every line counts once."""
    assert audit.verify_export(EXPORT[:place] + EXPORT[place + 1 :]).faults != ()
    assert audit.verify_export([*EXPORT[:other], EXPORT[place], *EXPORT[other:]]).faults != ()


def test_the_canonical_form_is_the_models() -> None:
    """One canonical form in the whole project: what plans are hashed over, chains are too."""
    event = simple()[0]
    assert canonical(json.loads(audit.body_of(event))) == audit.body_of(event)
