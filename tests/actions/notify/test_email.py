"""`notify.email` on a real SMTP server: TLS and login, threads, no header from outside, and what each failure means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.email import Email, EmailConnection, compose
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, TemporaryError
from remediator.model import JSON, Plan, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.certificates import Authority
from tests.servers.ports import free_port
from tests.servers.smtp import SmtpServer

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
VALUES: Mapping[str, Any] = {
    "kind": "page",
    "incident": "INC-20260101-001",
    "page": "INC-20260101-001",
    "severity": "sev1",
    "summary": "Redis is unreachable",
    "rule": "redis-down",
    "runbook": "https://wiki.example.com/redis?a=1&b=2",
    "link": "https://remediator.example.com/ui/incidents/INC-20260101-001",
    "text": "SEV1 INC-20260101-001: Redis is unreachable [redis-down]\nTimeline: remediator show INC-20260101-001",
}
PEOPLE = {"l1": "oncall@example.com", "l2": "oncall-l2@example.com", "all": "customers@example.com"}


def settings_of(port: int, **more: Any) -> EmailConnection:
    """Return a connection without TLS to a server on this host."""
    raw = {"host": "127.0.0.1", "port": port, "security": "none", "sender": "remediator@example.com", "recipients": PEOPLE, "timeout": "1s"}
    return EmailConnection.model_validate(raw | more)


class Teller:
    """Sends messages as the outbox does; it keeps its client between attempts."""

    def __init__(self, connection: EmailConnection) -> None:
        self.connection = connection
        self.clients = LocalContext({"mail": connection})

    def context(self, key: str, values: Mapping[str, Any]) -> LocalContext:
        """Return the context of one attempt."""
        ctx = LocalContext({"mail": self.connection}, values=values, key=key, now=lambda: NOW)
        ctx._clients = self.clients._clients
        return ctx

    async def tell(self, key: str = "m1", to: tuple[str, ...] = ("l1",), wish: Mapping[str, Any] | None = None, **values: Any) -> Receipt:
        """Plan and apply one message."""
        ctx = self.context(key, {**VALUES, **values})
        raw = {"connection": "mail", "to": to, "text": ctx.values["text"]} | (wish or {})
        plan = await Email().plan(Email.Params.model_validate(raw), ctx)
        return await Email().apply(plan, ctx)


@pytest.fixture
async def smtp() -> AsyncIterator[SmtpServer]:
    """Start a mail server without TLS, on loopback."""
    async with SmtpServer() as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority."""
    return Authority(tmp_path_factory.mktemp("mail-authority"))


class TestConformance(ActionConformance):
    """`notify.email` keeps the contract of actions."""

    action = Email()
    crash_points = 80
    server: ClassVar[SmtpServer] = SmtpServer()

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a mail server, on the port that it had."""
        self.server.box.mails.clear()
        await self.server.start()
        return LocalContext({"mail": settings_of(self.server.port)}, values=VALUES), {"connection": "mail", "to": ["l1"], "text": "x"}

    async def state(self) -> JSON:
        """Every mail that was taken."""
        return [[*to, str(mail["Message-ID"])] for to, mail in self.server.box.mails]

    async def disturb(self) -> None:
        """The mailbox goes away."""
        self.server.box.on_recipient = lambda _address: "550 5.1.1 no such mailbox"

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.box.on_recipient = lambda _address: None


async def test_mail_has_headers_text_and_html(smtp: SmtpServer) -> None:
    """From, To, Subject, and both bodies; nobody's vacation notice comes back."""
    await Teller(settings_of(smtp.port)).tell()
    ((to, mail),) = smtp.box.mails
    assert to == ["oncall@example.com"]
    assert (mail["From"], mail["To"]) == ("remediator <remediator@example.com>", "oncall@example.com")
    assert mail["Subject"] == "SEV1 INC-20260101-001: Redis is unreachable"
    assert mail["Date"].datetime == NOW
    assert (mail["Auto-Submitted"], mail["X-Auto-Response-Suppress"]) == ("auto-generated", "All")
    plain, page = (part.get_content() for part in mail.iter_parts())
    assert plain.splitlines()[:3] == [*VALUES["text"].splitlines(), ""]
    assert plain.splitlines()[3].startswith("incident: https://remediator.example.com/")
    assert '<a href="https://wiki.example.com/redis?a=1&amp;b=2">runbook</a>' in page


async def test_mails_of_an_incident_are_a_thread(smtp: SmtpServer) -> None:
    """Each has an id of its own, and all refer to the same root; another incident is another thread."""
    teller = Teller(settings_of(smtp.port))
    for key, kind, page in (("m1", "page", "INC-1"), ("m2", "update", "INC-1"), ("m3", "resolved", "INC-1"), ("m4", "page", "INC-2")):
        await teller.tell(key, kind=kind, page=page)
    mails = [mail for _, mail in smtp.box.mails]
    assert len({mail["Message-ID"] for mail in mails}) == 4
    roots = [mail["In-Reply-To"] for mail in mails]
    assert roots == [mail["References"] for mail in mails]
    assert roots[0] == roots[1] == roots[2] != roots[3]
    assert all(mail["Message-ID"].endswith("@example.com>") for mail in mails)


async def test_mail_sent_again_has_the_same_id(smtp: SmtpServer) -> None:
    """By which mailboxes know that they have it."""
    teller = Teller(settings_of(smtp.port))
    await teller.tell("m1")
    await teller.tell("m1")
    first, second = (mail["Message-ID"] for _, mail in smtp.box.mails)
    assert first == second


EVIL = "down\r\nBcc: evil@example.com\r\n\r\n<script>alert(1)</script>\r\n.\r\nMAIL FROM:<x@example.com>"


async def test_alert_can_add_no_header_no_recipient_and_no_markup(smtp: SmtpServer) -> None:
    """What stands in a label is text, in the subject, both bodies and on the wire."""
    await Teller(settings_of(smtp.port)).tell(summary=EVIL, text=EVIL, rule=EVIL, incident=EVIL, severity=EVIL, page=EVIL)
    ((to, mail),) = smtp.box.mails
    assert to == ["oncall@example.com"]
    assert mail["Bcc"] is None
    assert set(mail.keys()) <= {
        *("From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted", "X-Auto-Response-Suppress"),
        *("Content-Type", "MIME-Version", "X-Peer", "X-MailFrom", "X-RcptTo"),
    }
    _, page = (part.get_content() for part in mail.iter_parts())
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@settings(deadline=None)
@given(
    values=st.fixed_dictionaries(
        {name: st.text(max_size=300) for name in ("summary", "rule", "severity", "incident", "page", "runbook", "link")}
    ),
    text=st.text(max_size=3_000),
)
async def test_any_value_stays_in_its_header(values: dict[str, str], text: str) -> None:
    """The mail reads back with exactly our headers, one recipient, two parts, and lines that any server takes."""
    connection = settings_of(25)
    ctx = LocalContext({"mail": connection}, values={**VALUES, **values}, key="m1", now=lambda: NOW)
    plan = await Email().plan(Email.Params(connection="mail", to=("l1",), text=text or "x"), ctx)
    raw = compose(plan, connection, ctx).as_bytes()
    mail = cast("EmailMessage", message_from_bytes(raw, policy=default))
    names = [name.lower() for name in mail.keys()]  # noqa: SIM118 - a message, not a mapping
    assert len(names) == len(set(names))
    assert mail["To"] == "oncall@example.com"
    assert not mail.defects
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.isascii()


async def test_customers_do_not_see_each_other(smtp: SmtpServer) -> None:
    """Their notice takes nothing internal, and shows no addresses."""
    wish = {"template": "vizzio-customers", "fields": {"service": "API Gateway", "team": "Vizzio Platform Team"}}
    await Teller(settings_of(smtp.port)).tell(to=("l1", "all"), wish=wish)
    ((to, mail),) = smtp.box.mails
    assert sorted(to) == ["customers@example.com", "oncall@example.com"]
    assert mail["To"] == "undisclosed-recipients:;"
    assert b"example.com" not in smtp.box.raw[0].split(b"\r\n\r\n", 1)[1]
    assert mail["Subject"] == "[SEV1 INCIDENT] Service Degradation - API Gateway"


async def test_s13_page_in_dry_run_goes_out_and_says_so(smtp: SmtpServer) -> None:
    """Marked in the subject."""
    await Teller(settings_of(smtp.port)).tell(dry_run=True)
    assert smtp.box.mails[0][1]["Subject"].startswith("DRY RUN · SEV1")


# --- TLS and login

# aiosmtpd does not count TLS from the first byte on as TLS.
IMPLICIT = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")


@IMPLICIT
@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_login_over_tls(authority: Authority, tmp_path: Path, security: str) -> None:
    """Both ways of TLS, with the authority of the settings and a password by reference."""
    context = authority.issue(f"mail-{security}")
    server = SmtpServer(login=True, **({"starttls": context} if security == "starttls" else {"tls": context}))
    async with server:
        await Teller(secured(server, authority, tmp_path, security=security)).tell()
        assert (server.box.logins, len(server.box.mails)) == (["remediator"], 1)


def secured(server: SmtpServer, authority: Authority, directory: Path, **more: Any) -> EmailConnection:
    """Return a connection with TLS and login."""
    (directory / "password").write_text(f"{SmtpServer.PASSWORD}\n")
    login = {"username": SmtpServer.USER, "password": {"file": str(directory / "password")}, "ca": str(authority.ca)}
    return settings_of(server.port, **(login | {"security": "starttls"} | more))


async def test_server_that_offers_no_tls_gets_nothing(smtp: SmtpServer, authority: Authority, tmp_path: Path) -> None:
    """STARTTLS is never given up because somebody on the way took the offer out: no password, no mail."""
    with pytest.raises(PermanentError, match="STARTTLS") as caught:
        await Teller(secured(smtp, authority, tmp_path)).tell()
    assert "s3cret" not in str(caught.value)
    assert smtp.box.mails == []


@IMPLICIT
@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_server_that_is_not_who_it_says_gets_nothing(authority: Authority, tmp_path: Path, security: str) -> None:
    """A certificate of another authority, or for another name, ends it."""
    context = Authority(tmp_path / "other").issue("mail")
    server = SmtpServer(login=True, **({"starttls": context} if security == "starttls" else {"tls": context}))
    async with server:
        with pytest.raises(TemporaryError, match=r"could not be trusted: .* \(.*certificate.*\); nothing was sent"):
            await Teller(secured(server, authority, tmp_path, security=security)).tell()
        assert (server.box.logins, server.box.mails) == ([], [])


@pytest.mark.parametrize(
    ("answer", "error"),
    [("535 5.7.8 bad password s3cret-mail-password", PermanentError), ("454 4.7.0 s3cret-mail-password", TemporaryError)],
)
async def test_refused_login_is_told_without_the_password(
    authority: Authority, tmp_path: Path, answer: str, error: type[Exception]
) -> None:
    """Not even when the server repeats it."""
    async with SmtpServer(login=True, starttls=authority.issue("mail-login")) as server:
        server.refuse_login = answer
        with pytest.raises(error, match="refused the login of 'remediator'") as caught:
            await Teller(secured(server, authority, tmp_path)).tell()
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"


async def test_plan_and_receipt_hold_no_password(authority: Authority, tmp_path: Path) -> None:
    """What is stored could be shown to anybody."""
    async with SmtpServer(login=True, starttls=authority.issue("mail-plan")) as server:
        teller = Teller(secured(server, authority, tmp_path))
        ctx = teller.context("m1", VALUES)
        plan = await Email().plan(Email.Params(connection="mail", to=("l1",), text="x"), ctx)
        receipt = await Email().apply(plan, ctx)
    assert b"s3cret" not in canonical([to_json(plan), to_json(receipt)])


async def test_password_of_any_letters_works_and_is_never_shown(authority: Authority, tmp_path: Path) -> None:
    """UTF-8 goes over the wire; a wrong one is refused without a word of it."""
    async with SmtpServer(login=True, starttls=authority.issue("mail-letters")) as server:
        connection = secured(server, authority, tmp_path)
        (tmp_path / "password").write_text("pässwörd-ключ-s3cret")
        with pytest.raises(PermanentError, match="refused the login") as caught:
            await Teller(connection).tell()
    assert "s3cret" not in f"{caught.value!r}{caught.value.__context__!r}"


# --- failures


@pytest.mark.parametrize(
    ("code", "error"), [("450 4.2.0 greylisted, try again", TemporaryError), ("550 5.1.1 no such mailbox", PermanentError)]
)
async def test_refused_recipient(smtp: SmtpServer, code: str, error: type[Exception]) -> None:
    """Greylisting is worth another attempt, an unknown mailbox is not."""
    smtp.box.on_recipient = lambda _address: code
    with pytest.raises(error, match=code[:3]):
        await Teller(settings_of(smtp.port)).tell()
    assert smtp.box.mails == []


@pytest.mark.parametrize(
    ("code", "error"), [("451 4.3.0 later", TemporaryError), ("552 5.3.4 too large", PermanentError), ("554 5.7.1 spam", PermanentError)]
)
async def test_refused_text(smtp: SmtpServer, code: str, error: type[Exception]) -> None:
    """The server's answer to the text says what will come of it."""
    smtp.box.on_text = lambda: code
    with pytest.raises(error, match=code[:3]):
        await Teller(settings_of(smtp.port)).tell()
    assert smtp.box.mails == []


async def test_one_greylisted_mailbox_costs_the_others_nothing(smtp: SmtpServer) -> None:
    """The others have the mail at once and once; the one that refused is tried again alone, and says so until it takes it."""
    smtp.box.on_recipient = lambda address: "450 4.2.0 greylisted" if address == PEOPLE["l2"] else None
    teller = Teller(settings_of(smtp.port))
    for _ in range(2):
        with pytest.raises(TemporaryError, match=r"oncall-l2@example.com \(450\)"):
            await teller.tell(to=("l1", "l2"))
    assert [to for to, _ in smtp.box.mails] == [["oncall@example.com"]]
    smtp.box.on_recipient = lambda _address: None
    await teller.tell(to=("l1", "l2"))
    assert [to for to, _ in smtp.box.mails] == [["oncall@example.com"], ["oncall-l2@example.com"]]


async def test_s17_connection_lost_after_the_text_is_unknown(smtp: SmtpServer) -> None:
    """The mail may be on its way: it is sent again with the same id, at least once and never not at all."""
    smtp.box.hang_up = True
    teller = Teller(settings_of(smtp.port))
    with pytest.raises(OutcomeUnknown, match="after the text"):
        await teller.tell()
    smtp.box.hang_up = False
    await teller.tell()
    first, second = (mail["Message-ID"] for _, mail in smtp.box.mails)
    assert first == second


async def test_server_that_is_down_is_temporary() -> None:
    """Nothing was sent: try later."""
    with pytest.raises(TemporaryError, match="refused the connection; nothing was sent"):
        await Teller(settings_of(free_port())).tell()


async def test_name_that_can_not_be_resolved_is_said_to_be_so() -> None:
    """Nothing was sent, and it is the name that is wrong."""
    with pytest.raises(TemporaryError, match="name that can't be resolved now; nothing was sent"):
        await Teller(settings_of(25, host="no-such-host.invalid")).tell()


# --- settings


async def test_only_listed_people_get_mail(smtp: SmtpServer) -> None:
    """A name that the connection does not list gets nothing, and no alert can name an address."""
    with pytest.raises(PlanRefused, match=r"no recipients \['evil@example.com'\]; it has \['all', 'l1', 'l2'\]"):
        await Teller(settings_of(smtp.port)).tell(to=("evil@example.com",))
    assert smtp.box.mails == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"sender": "Remediator <a@example.com>"},
        {"sender": "a@example.com\nBcc: b@example.com"},
        {"recipients": {"l1": "not an address"}},
        {"recipients": {}},
        {"username": "x"},
        {"username": "x", "password": {"env": "P"}, "security": "none"},
        {"host": "mail.example.com\r\nX"},
    ],
)
def test_wrong_settings_are_found_when_they_load(wrong: dict[str, Any]) -> None:
    """Addresses are bare, and a password never goes without TLS."""
    with pytest.raises(ValidationError):
        settings_of(25, **wrong)


async def test_sender_name_can_not_break_its_header() -> None:
    """Whatever the settings say."""
    connection = settings_of(25, sender_name='On "Call", <evil@example.com>\r\nBcc: x@example.com')
    ctx = LocalContext({"mail": connection}, values=VALUES, key="m1", now=lambda: NOW)
    plan: Plan = await Email().plan(Email.Params(connection="mail", to=("l1",), text="x"), ctx)
    mail = message_from_bytes(compose(plan, connection, ctx).as_bytes(), policy=default)
    assert mail["Bcc"] is None
    assert [one.addr_spec for one in mail["From"].addresses] == ["remediator@example.com"]
