"""Read the secrets that settings and rules refer to, at the moment they are needed."""

from __future__ import annotations

from collections.abc import Mapping

from remediator.action import SecretRef
from remediator.scrubber import Scrubber


class SecretStore:
    """Reveals references: environment, files (read again each time), Kubernetes Secrets, AWS Secrets Manager."""

    def __init__(self, environ: Mapping[str, str], scrubber: Scrubber) -> None:
        self.environ = environ
        self.scrubber = scrubber

    async def reveal(self, ref: SecretRef) -> str:
        """Return the value now, and teach it to the scrubber. Raises `PermanentError` or `TemporaryError` naming the reference."""
        raise NotImplementedError
