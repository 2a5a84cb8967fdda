"""The settings about where the daemon listens."""

from __future__ import annotations

from pydantic import Field

from remediator.settings.part import MIB, FilePath, Part, setting


class TlsSettings(Part):
    """Certificate of the listener, and the authority that signs clients' certificates."""

    cert: FilePath = Field(description="PEM file with the certificate chain", json_schema_extra={"reload": False})
    key: FilePath = Field(description="PEM file with the private key", json_schema_extra={"reload": False})
    client_ca: FilePath | None = setting(None, "PEM file; clients may then show a certificate signed by it", reload=False)


class ListenSettings(Part):
    """Where webhooks, API and UI are served."""

    host: str = setting("127.0.0.1", "address to listen on", reload=False, min_length=1)
    port: int = setting(9095, "TCP port; 0 takes a free one", reload=False, ge=0, le=65535)
    max_body: int = setting(16 * MIB, "most bytes of a request's body", reload=False, ge=1024)
    max_bodies: int = setting(
        64 * MIB, "most bytes of all bodies in hand at a time, `max_body` at least; more are answered with 503", reload=False, ge=1024
    )
    max_connections: int = setting(1000, "most connections at a time; more are answered with 503", reload=False, ge=1)
    tls: TlsSettings | None = setting(None, "serve HTTPS", reload=False)
