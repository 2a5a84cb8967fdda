"""`notify.email`: a message by SMTP, threaded by incident."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import re
import socket
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from actions.notify.delivery import Messenger, nothing_to_say, target_of
from actions.notify.sending import hide
from actions.notify.showing import known_links, shown
from actions.notify.wording import LATER, Nothing, Telling, Words, one_line, word
from remediator.action import Connection, Context, SecretRef
from remediator.duration import Duration
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.httpclient import failure_of_socket, open_tls
from remediator.model import JSON, Change, Plan, Receipt, Target

if TYPE_CHECKING:
    from email.message import EmailMessage

    from aiosmtplib import SMTP

_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?P<domain>[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+|localhost)")
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")
REMEMBERED = 200
"""Messages of which it is remembered who has them, while not everybody has."""
UNDISCLOSED = "undisclosed-recipients:;"


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is no address; write name@example.com, without a display name")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is no host name")
    return text


Address = Annotated[str, AfterValidator(_address)]


class Security(StrEnum):
    """How the way to the server is protected."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


_PORTS = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


class EmailConnection(Connection):
    """One mail server, who writes, and to whom may be written."""

    model_config = LATER
    host: Annotated[str, AfterValidator(_host)] = Field(description="the mail server")
    port: int | None = Field(None, ge=1, le=65_535, description="its port; by default 587 for starttls, 465 for tls, 25 for none")
    security: Security = Field(Security.STARTTLS, description="starttls (never less: a server that offers none is refused), tls or none")
    username: str = Field("", max_length=200, description="who logs in; none: nobody")
    password: SecretRef | None = Field(None, description="reference of the password")
    sender: Address = Field(description="address in From and in the envelope")
    sender_name: str = Field("remediator", max_length=100, description="name shown beside it")
    recipients: Mapping[str, Address] = Field(min_length=1, description="to whom may be written: name → address")
    ca: str = Field("", description="PEM file of the authority to trust instead of the system's")
    timeout: Duration = Field(timedelta(seconds=10), gt=timedelta(), description="longest time for one answer of the server")

    @model_validator(mode="after")
    def _password_stays_private(self) -> Self:
        if bool(self.username) != (self.password is not None):
            raise ValueError("username and password come together")
        if self.password is not None and self.security is Security.NONE:
            raise ValueError("a password would be readable on the way; use starttls or tls")
        return self

    @property
    def mail_domain(self) -> str:
        """The sender's domain, for message ids."""
        return self.sender.rpartition("@")[2]


class _EmailParams(Telling):
    to: tuple[str, ...] = Field(min_length=1, max_length=50, description="names from the connection's list")


class _Memory:
    """Who has a message that not everybody has yet, so that a mailbox that refuses does not cost the others a copy each time."""

    def __init__(self) -> None:
        self._taken: OrderedDict[str, set[str]] = OrderedDict()
        self.turn = asyncio.Lock()

    def taken(self, key: str) -> frozenset[str]:
        return frozenset(self._taken.get(key, ()))

    def note(self, key: str, addresses: Sequence[str]) -> None:
        self._taken.setdefault(key, set()).update(addresses)
        while len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)

    def forget(self, key: str) -> None:
        self._taken.pop(key, None)

    def close(self) -> None:
        self._taken.clear()


async def _open_memory(connection: EmailConnection, ctx: Context) -> _Memory:  # noqa: ARG001 - the signature that `ctx.client` asks for
    return _Memory()


class Email(Messenger[_EmailParams]):
    """Send a mail to people that the connection lists, as plain text and minimal HTML.

    All mails of an incident form a thread, and a mail that has to be sent again has the same Message-ID, by which mailboxes know it.
    A recipient whose mailbox refuses is tried again alone. Mails for customers don't show who else got them.
    """

    name = "notify.email"
    Params = _EmailParams
    connection = EmailConnection
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "mail",
        "to": ["oncall-l2"],
        "text": "Restarted ${labels.deployment}, which did not help",
    }

    @classmethod
    def misfits(cls, params: Any, connection: Connection) -> Sequence[str]:
        """Return names that the connection does not list."""
        known = getattr(connection, "recipients", {})
        unknown = sorted(set(params.to) - known.keys())
        return [f"has no recipients {unknown}; it has {sorted(known)}"] if unknown else []

    async def plan(self, params: _EmailParams, ctx: Context) -> Plan:
        """Render the mail. Nothing is sent, no secret is read."""
        connection = ctx.connection(EmailConnection, params.connection)
        if faults := self.misfits(params, connection):
            raise PlanRefused(f"connection {params.connection!r} {faults[0]}")
        target = target_of("email", params.connection, ctx)
        words = word(params, ctx.values, ctx.now, text=params.text)
        if isinstance(words, Nothing):
            return nothing_to_say(self.name, params.connection, target, words.why)
        to = sorted({connection.recipients[name] for name in params.to})
        return self._plan(params.connection, target, to, words, ctx)

    def _plan(self, connection: str, target: Target, to: Sequence[str], words: Words, ctx: Context) -> Plan:
        links = [] if words.public else [list(pair) for pair in known_links(ctx.values)]
        intent: dict[str, JSON] = {
            "to": list(to),
            "subject": words.subject,
            "text": words.text,
            "links": links,
            "hidden": words.public and len(to) > 1,
            "thread": one_line(shown(ctx.values, "page") or shown(ctx.values, "incident")),
        }
        return Plan(
            action=self.name,
            summary=f"mail to {', '.join(to)[:200]}: {words.subject[:100]}",
            targets=(target,),
            intent=intent,
            changes=(Change(target.id, "message", None, words.text),),
            connection=connection,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Send the mail to those who don't have it yet.

        Raises `TemporaryError` when the server is away or asks to come back, `PermanentError` when it refuses, both also for some of the
        recipients only, and `OutcomeUnknown` when its answer was lost after the text.
        """
        if plan.noop:
            return Receipt(plan.summary)
        connection = ctx.connection(EmailConnection, plan.connection)
        memory = await ctx.client(EmailConnection, plan.connection, _open_memory)
        message = compose(plan, connection, ctx)
        left = [address for address in plan.intent["to"] if address not in memory.taken(ctx.key)]
        refused = await _send(message.as_bytes(), left, connection, plan.connection, ctx) if left else {}
        if refused:
            memory.note(ctx.key, [address for address in left if address not in refused])
            raise _partly(refused, plan.connection)
        memory.forget(ctx.key)
        return Receipt(f"the mail server took it for {len(plan.intent['to'])}", {"status": 250}, tuple(one.id for one in plan.targets))


# --- the mail


def compose(plan: Plan, connection: EmailConnection, ctx: Context) -> EmailMessage:
    """Write the mail. No value can add a header or an element: headers take single lines only, and HTML is escaped as a whole."""
    from email.headerregistry import Address as Mailbox
    from email.message import EmailMessage
    from email.policy import SMTP as WIRE
    from email.utils import format_datetime

    intent, (name, _, domain) = plan.intent, connection.sender.partition("@")
    message = EmailMessage(policy=WIRE)
    message["From"] = Mailbox(one_line(connection.sender_name), name, domain)
    message["To"] = UNDISCLOSED if intent["hidden"] else ", ".join(intent["to"])
    message["Subject"] = one_line(intent["subject"])
    message["Date"] = format_datetime(ctx.now)
    message["Message-ID"] = message_id(ctx.key, connection.mail_domain)
    if intent["thread"]:
        root = message_id(f"thread {intent['thread']}", connection.mail_domain)
        message["In-Reply-To"] = root
        message["References"] = root
    # RFC 3834: no vacation notices in return.
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content(_plain(intent), cte="quoted-printable")
    message.add_alternative(_html(intent), subtype="html", cte="quoted-printable")
    message.set_boundary(f"=_{hashlib.sha256(ctx.key.encode('utf-8', 'replace')).hexdigest()[:32]}")
    return message


def message_id(key: str, domain: str) -> str:
    """Return a Message-ID that is the same for the same message and tells nothing."""
    return f"<{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:40]}.remediator@{domain}>"


def _plain(intent: Mapping[str, JSON]) -> str:
    return "\n".join([intent["text"], "", *(f"{title}: {url}" for title, url in intent["links"])]).rstrip() + "\n"


def _html(intent: Mapping[str, JSON]) -> str:
    links = "".join(f'<p><a href="{html.escape(url)}">{html.escape(title)}</a></p>' for title, url in intent["links"])
    text = f'<pre style="font:14px/1.4 sans-serif;white-space:pre-wrap">{html.escape(intent["text"])}</pre>'
    return f"<!doctype html><html><body>{text}{links}</body></html>\n"


# --- the server


async def _send(message: bytes, to: Sequence[str], connection: EmailConnection, name: str, ctx: Context) -> Mapping[str, tuple[int, str]]:
    """Send to all who are taken; return who was refused, with code and reason. Raises what `apply` raises."""
    import aiosmtplib

    what = f"the mail server of connection {name!r}"
    password = None if connection.password is None else await ctx.secret(connection.password)
    secrets = _forms(connection.username, password)
    smtp = await _client(connection)
    try:
        await _greet(smtp, connection, password, what)
        refused = await _envelope(smtp, connection.sender, to)
        refused = {address: (code, hide(one_line(said), secrets)[:200]) for address, (code, said) in refused.items()}
        if len(refused) < len(to):
            await _hand_over(smtp, message, what, secrets)
    except aiosmtplib.SMTPException as error:
        raise _error_of(error, what, secrets) from None
    except OSError as error:
        raise _unreachable(error, what) from None
    finally:
        smtp.close()
    return refused


async def _client(connection: EmailConnection) -> SMTP:
    from aiosmtplib import SMTP

    tls = None if connection.security is Security.NONE else await asyncio.to_thread(open_tls, connection.ca)
    return SMTP(
        hostname=connection.host,
        port=connection.port or _PORTS[connection.security],
        local_hostname=_own_name(),
        timeout=connection.timeout.total_seconds(),
        use_tls=connection.security is Security.TLS,
        start_tls=connection.security is Security.STARTTLS,
        tls_context=tls,
    )


def _own_name() -> str:
    """Return this host's name for the greeting; not the fully qualified one, for which DNS would be asked."""
    name = socket.gethostname()
    return name if _HOST.fullmatch(name) else "localhost"


async def _greet(smtp: SMTP, connection: EmailConnection, password: str | None, what: str) -> None:
    import aiosmtplib

    await smtp.connect()
    if password is None:
        return
    try:
        await smtp.login(connection.username, password)
    except aiosmtplib.SMTPResponseException as error:
        # Not its text: servers have been seen to repeat what they were given.
        text = f"{what} refused the login of {connection.username!r} ({error.code}); nothing was sent"
        raise (TemporaryError(text) if 400 <= error.code < 500 else PermanentError(text)) from None


async def _envelope(smtp: SMTP, sender: str, to: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Name the sender and the recipients; return who was refused."""
    import aiosmtplib

    await smtp.mail(sender)
    refused: dict[str, tuple[int, str]] = {}
    for address in to:
        try:
            await smtp.rcpt(address)
        except aiosmtplib.SMTPRecipientRefused as error:
            refused[address] = (error.code, error.message)
    return refused


async def _hand_over(smtp: SMTP, message: bytes, what: str, secrets: Sequence[str]) -> None:
    """Send the text. From here on a lost answer says nothing: the mail may be on its way."""
    import aiosmtplib

    try:
        await smtp.data(message)
    except aiosmtplib.SMTPResponseException as error:
        raise _error_of(error, what, secrets) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise OutcomeUnknown(
            f"{what} did not answer after the text ({type(error).__name__}); it may or may not have taken the mail"
        ) from None
    try:
        async with asyncio.timeout(1):
            await smtp.quit()
    except (aiosmtplib.SMTPException, OSError):
        pass  # it has taken the mail; how it says goodbye is its own affair


def _error_of(error: Exception, what: str, secrets: Sequence[str]) -> RemediatorError:
    """Return what an answer, or none, means. Nothing was sent."""
    import aiosmtplib

    match error:
        case aiosmtplib.SMTPResponseException() if 400 <= error.code < 500:
            return TemporaryError(f"{what} asks to come back ({error.code}): {hide(one_line(error.message), secrets)[:200]}")
        case aiosmtplib.SMTPResponseException():
            return PermanentError(f"{what} refused the mail ({error.code}): {hide(one_line(error.message), secrets)[:200]}")
        case aiosmtplib.SMTPTimeoutError():
            return TemporaryError(f"{what} did not answer in time; nothing was sent")
        case aiosmtplib.SMTPServerDisconnected() | aiosmtplib.SMTPConnectError():
            return _unreachable(error.__cause__, what)
        case _:
            return PermanentError(f"{what} can't do what was asked: {hide(one_line(error), secrets)[:200]}; nothing was sent")


def _unreachable(cause: BaseException | None, what: str) -> TemporaryError:
    """Return why there is no connection, in the words that HTTP has for it."""
    words = str(failure_of_socket(cause, what)) if isinstance(cause, OSError) else f"{what} hung up"
    detail = getattr(cause, "verify_message", "")
    return TemporaryError(f"{words}{f' ({detail})' if detail else ''}; nothing was sent")


def _partly(refused: Mapping[str, tuple[int, str]], name: str) -> RemediatorError:
    """Return the error for the recipients who were refused; the others have the mail."""
    said = "; ".join(f"{address} ({code}): {words}" for address, (code, words) in sorted(refused.items()))
    text = f"the mail server of connection {name!r} refused {said[:600]}; nobody else is affected"
    return TemporaryError(text) if all(400 <= code < 500 for code, _ in refused.values()) else PermanentError(text)


def _forms(username: str, password: str | None) -> Sequence[str]:
    """Return the password in every form in which a server could repeat it."""
    if password is None:
        return ()
    plain = f"\0{username}\0{password}"
    return (password, *(base64.b64encode(text.encode()).decode() for text in (password, plain)))
