"""A real SMTP server (aiosmtpd) on a loopback port: with TLS, login, and a will of its own about what it takes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Any, Self, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Mailbox:
    """What the server does with each recipient and each text; `mails` are those it took, as (recipients, message)."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.raw: list[bytes] = []
        self.logins: list[str] = []
        self.on_recipient: Callable[[str], str | None] = lambda _address: None
        self.on_text: Callable[[], str | None] = lambda: None
        self.hang_up = False
        """Take the text, and break the connection off instead of saying so."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient unless the test says otherwise."""
        refused = self.on_recipient(address)
        if refused is None:
            envelope.rcpt_tos.append(address)
        return refused or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take the text unless the test says otherwise."""
        refused = self.on_text()
        if refused is not None:
            return refused
        content = cast("bytes", envelope.content)
        self.raw.append(content)
        self.mails.append((list(envelope.rcpt_tos), cast("EmailMessage", message_from_bytes(content, policy=default))))
        if self.hang_up:
            cast("Any", server).transport.abort()
        return "250 2.0.0 taken"


class SmtpServer:
    """Serves one mailbox. Use with `async with`; a restart keeps the port."""

    USER, PASSWORD = "remediator", "s3cret-mail-password"

    def __init__(self, *, tls: ssl.SSLContext | None = None, starttls: ssl.SSLContext | None = None, login: bool = False) -> None:
        self.box = Mailbox()
        self.port = 0
        self.refuse_login: str | None = None
        self._tls, self._starttls, self._login = tls, starttls, login
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.BaseTransport] = set()

    async def start(self) -> Self:
        """Listen."""
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening, and break off what is open."""
        if self._server is not None:
            self._server.close()
            for transport in list(self._open):
                with suppress(AttributeError):  # Python 3.11.2 can't abort a TLS connection that is closed already
                    cast("asyncio.Transport", transport).abort()
            await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def _protocol(self) -> SMTP:
        server = self

        class Tracked(SMTP):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                server._open.add(transport)
                super().connection_made(transport)

        return Tracked(
            self.box,
            hostname="mail.example.com",
            tls_context=self._starttls,
            require_starttls=self._starttls is not None,
            authenticator=self._authenticate if self._login else None,
            auth_required=self._login,
            auth_require_tls=self._starttls is not None,  # it does not know of TLS from the first byte on
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        if self.refuse_login is not None:
            return AuthResult(success=False, handled=False, message=self.refuse_login)
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (self.USER.encode(), self.PASSWORD.encode())
        if good:
            self.box.logins.append(self.USER)
        return AuthResult(success=good, handled=False)
