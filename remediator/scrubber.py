"""Take secrets out of whatever is about to be stored, logged, sent or shown."""

from __future__ import annotations

from remediator.model import JSON

REDACTED = "«redacted»"


class Scrubber:
    """Knows every secret that was ever revealed and what secrets look like. Safe to use from several threads."""

    def learn(self, secret: str) -> None:
        """Remember a secret's value, in the forms in which it may turn up again. Shorter than six characters: ignored."""
        raise NotImplementedError

    def text(self, text: str) -> str:
        """Return `text` with every secret replaced. Doing it twice is doing it once."""
        raise NotImplementedError

    def json(self, value: JSON) -> JSON:
        """Return a copy of a JSON tree with every secret in keys and strings replaced."""
        raise NotImplementedError
