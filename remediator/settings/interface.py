"""The settings of the web interface."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from pydantic import model_validator

from remediator.action import SecretRef
from remediator.duration import Duration
from remediator.settings.part import Part, setting


class UiSettings(Part):
    """The web interface, on the same listener as the API."""

    enabled: bool = setting(True, "serve the web interface: `/`, and all below `/ui/`", reload=True)
    session: Duration = setting(timedelta(hours=8), "how long a sign-in holds", reload=True, ge=timedelta(minutes=1), le=timedelta(days=7))
    session_key: SecretRef | None = setting(
        None,
        "reference to a random text of at least 32 characters that signs sessions; all replicas need the same one. Default: made at start, "
        "so that sessions end with the process",
        reload=False,
    )

    @model_validator(mode="after")
    def _independent(self) -> Self:
        if self.session_key is not None and self.session_key.kubernetes is not None:
            raise ValueError("session_key can't be in a cluster that this daemon may have to heal; refer to env, file or aws")
        return self
