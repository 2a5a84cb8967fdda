"""What is said after an act: what the person did, in the past tense, once, and only where his own act has put it into the address."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.records import EVERYWHERE, INEFFECTIVE, STORM, WATCHDOG, SignalKind
from remediator.web.ui.page import Form

OUT = "You are signed out."
LASTS = timedelta(seconds=30)
"""So long an address says it: who reloads the page later, or keeps it, is told nothing that may be over by then."""
LONGEST = 300


@dataclass(frozen=True)
class Said:
    """A sentence, and when it became true."""

    words: str
    at: datetime


@dataclass(frozen=True)
class Done:
    """What somebody did: his form, the parts of its path, and the route's answer."""

    form: Form
    parts: Mapping[str, str]
    answer: Mapping[str, Any]
    meant: bool = True
    """False when the answer is about what somebody had done before: this word changed nothing."""


def sealed(words: str, *, key: str, now: datetime) -> str:
    """Return words for an address, which only pages of the session with this key open."""
    text = f"{int(now.timestamp())} {words[:LONGEST]}".encode()
    return f"{base64.urlsafe_b64encode(text).decode()}.{_mark(text, key)}"


def opened(value: str, *, key: str, now: datetime) -> Said | None:
    """Return what an address says; None for what is old, or was not sealed by this session."""
    encoded, _, mark = value.rpartition(".")
    try:
        text = base64.urlsafe_b64decode(encoded.encode())
    except (binascii.Error, ValueError):
        return None
    if not hmac.compare_digest(mark.encode("utf-8", "replace"), _mark(text, key).encode()):
        return None
    moment, _, words = text.decode().partition(" ")
    at = datetime.fromtimestamp(int(moment), UTC)
    return Said(words, at) if abs(now - at) < LASTS else None


def _mark(text: bytes, key: str) -> str:
    return hmac.new(key.encode(), b"said\0" + text, "sha256").hexdigest()[:32]


# --- the sentences ---------------------------------------------------------------------------------------------------------


def paused(done: Done) -> str:
    """Say what was stopped, or that it had been."""
    if not done.meant:
        return (
            f"Nothing new: {_scope(done)} had been stopped already, by {done.answer['who']}. That stop stands; your reason was not noted."
        )
    if done.form.get("scope") == EVERYWHERE:
        return "You threw the kill switch. What was under way was let finish; nothing further was started."
    return f"You stopped {_scope(done)}. Other rules went on."


def resumed(done: Done) -> str:
    """Say what was lifted."""
    scope = done.form.get("scope", "")
    if scope == STORM:
        return "You ended the storm. What it had held back began to be looked at again."
    if scope.startswith(WATCHDOG):
        return "You said that this watchdog will not come back."
    if scope.startswith(INEFFECTIVE):
        return f"You let the remedy {scope.removeprefix(INEFFECTIVE)} be tried again."
    return f"You lifted the stop of {_scope(done)}. What it had interrupted waits for a person's word, run by run."


def frozen(done: Done) -> str:
    """Say what was frozen, or that it had been, for longer."""
    if not done.meant:
        return f"Nothing new: {_scope(done)} had been frozen already, for longer, by {done.answer['who']}. That freeze stands."
    return f"You froze {_scope(done)}."


def thawed(done: Done) -> str:
    """Say what was thawed."""
    return f"You thawed {_scope(done)}. What had waited looked again."


def taken(done: Done) -> str:
    """Say what was taken."""
    return f"You took {done.parts.get('incident') or done.form.get('target', '')}: automation was told to keep its hands off."


def released(done: Done) -> str:
    """Say what was released."""
    return f"You released {done.parts.get('incident') or done.form.get('target', '')}. What had been stopped waits for a person's word."


def acknowledged(done: Done) -> str:
    """Say who the owner became."""
    return f"You became the owner of {done.parts['incident']}."


def decided(done: Done) -> str:
    """Say how somebody voted."""
    return "Your approval is recorded." if done.form.get("decision") == "approve" else "You denied it: this plan was not carried out."


def told(done: Done) -> str:
    """Say what a run was told."""
    return f"You told the run: {_WORDS.get(done.form.get('kind', ''), '')}."


_WORDS: Mapping[str, str] = {
    SignalKind.SETTLE_APPLIED: "it took effect",
    SignalKind.SETTLE_NOT_APPLIED: "it did not take effect",
    SignalKind.RESUME: "go on",
    SignalKind.UNDO: "undo what was done",
    SignalKind.CLOSE: "close as it is, do nothing more",
}


def undone(_done: Done) -> str:
    """Say that an undo began."""
    return "You asked for the undo. This run does it."


def reloaded(_done: Done) -> str:
    """Say that all was read again."""
    return "Settings and rules were read again and came into force."


def moved(done: Done) -> str:
    """Say what a rule may since."""
    return f"You set the rule {done.parts['rule']} to {done.form.get('to', '')}."


def _scope(done: Done) -> str:
    scope = done.form.get("scope", "").removeprefix("freeze:")
    kind, _, name = scope.partition(":")
    return f"the {kind} {name}" if name else "everything"
