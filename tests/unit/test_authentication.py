"""Tokens, passwords and certificates become actors; roles include operations."""

from __future__ import annotations

import hashlib

import pytest

from remediator.model import SYSTEM, Actor
from remediator.people.authentication import PERMISSIONS, Authenticator, Operation, Role, allows
from remediator.settings.people import IdentitySettings


def sha(text: str) -> str:
    """Hash as an operator would."""
    return hashlib.sha256(text.encode()).hexdigest()


IDENTITIES = {
    "anna": IdentitySettings(token_sha256=(sha("token-a"), sha("token-a2")), roles=frozenset({Role.APPROVER}), groups=frozenset({"sre"})),
    "alertmanager": IdentitySettings(
        password_sha256=(sha("word-1"), sha("word-2")),
        certificate_subject="CN=alertmanager,O=Example",
        roles=frozenset({Role.ALERT_SENDER}),
    ),
    "nobody-yet": IdentitySettings(),
}


@pytest.fixture
def authenticator() -> Authenticator:
    """Make an authenticator that knows three identities."""
    return Authenticator(IDENTITIES)


def test_bearer_finds_the_holder_of_each_of_its_tokens(authenticator: Authenticator) -> None:
    """Two tokens are valid while one replaces the other; roles and groups come along."""
    for token in ("token-a", "token-a2"):
        assert authenticator.bearer(token) == Actor("anna", frozenset({"approver"}), frozenset({"sre"}))


@pytest.mark.parametrize("token", ["", "token-b", "TOKEN-A", "token-a ", sha("token-a"), "\ud800", "word-1"])
def test_bearer_refuses_everything_else(authenticator: Authenticator, token: str) -> None:
    """Neither the hash itself nor a password nor nothing opens the door; broken text does not crash."""
    assert authenticator.bearer(token) is None


def test_basic_takes_the_identity_as_user(authenticator: Authenticator) -> None:
    """The user of basic authentication is the identity's name, with any of its passwords."""
    assert [getattr(authenticator.basic("alertmanager", word), "name", None) for word in ("word-1", "word-2")] == ["alertmanager"] * 2


@pytest.mark.parametrize(
    ("user", "password"),
    [("alertmanager", "word-3"), ("alertmanager", ""), ("anna", "token-a"), ("anna", ""), ("eve", "word-1"), ("nobody-yet", "")],
)
def test_basic_refuses_everything_else(authenticator: Authenticator, user: str, password: str) -> None:
    """A token is no password, an empty password opens nothing, an unknown user is refused."""
    assert authenticator.basic(user, password) is None


def test_certificate_matches_its_whole_subject(authenticator: Authenticator) -> None:
    """Only the exact subject counts; identities without a subject match no empty one."""
    found = authenticator.certificate("CN=alertmanager,O=Example")
    assert found is not None
    assert found.name == "alertmanager"
    assert authenticator.certificate("CN=alertmanager") is None
    assert authenticator.certificate("") is None


def test_s15_approver_is_who_could_still_say_so() -> None:
    """Who is gone, whose role was taken away, and who has no token, password or certificate left may not have approved."""
    anna = IDENTITIES["anna"]
    bare = anna.model_copy(update={"token_sha256": ()})
    for update, may in (
        ({"roles": frozenset({Role.VIEWER})}, False),
        ({"certificate_subject": "CN=a"}, True),
        ({"password_sha256": (sha("a"),)}, True),
    ):
        assert (Authenticator({"anna": bare.model_copy(update=update)}).approver("anna") is not None) is may
    assert Authenticator({"anna": bare}).approver("anna") is None
    assert Authenticator({}).approver("anna") is None
    assert Authenticator({"anna": anna}).approver("anna") == Actor("anna", frozenset({"approver"}), frozenset({"sre"}))


def test_every_role_has_its_permissions() -> None:
    """The table covers all roles, and each operation belongs to somebody besides the admin or is named here."""
    assert set(PERMISSIONS) == set(Role)
    assert PERMISSIONS[Role.ADMIN] == frozenset(Operation)
    others = frozenset[Operation]().union(*(operations for role, operations in PERMISSIONS.items() if role is not Role.ADMIN))
    assert others == frozenset(Operation) - {Operation.PROMOTE_UNEARNED}


def test_sender_of_alerts_reads_nothing_and_people_send_none() -> None:
    """A leaked webhook token shows no incident; a viewer's token injects no alert."""
    assert PERMISSIONS[Role.ALERT_SENDER] == {Operation.SEND_ALERTS}
    for role in (Role.VIEWER, Role.RESPONDER, Role.APPROVER, Role.RULE_EDITOR):
        assert Operation.SEND_ALERTS not in PERMISSIONS[role]


def test_s04_evidence_is_for_responders_and_above() -> None:
    """Raw log lines and SQL are not shown to viewers and rule editors (`semantics.md`, 4)."""
    assert [role for role in Role if Operation.READ_EVIDENCE in PERMISSIONS[role]] == [Role.RESPONDER, Role.APPROVER, Role.ADMIN]


def test_only_approvers_and_admins_let_things_happen() -> None:
    """Approving and lifting the kill switch need more than stopping does."""
    for operation in (Operation.APPROVE, Operation.RESUME):
        assert [role for role in Role if operation in PERMISSIONS[role]] == [Role.APPROVER, Role.ADMIN]
    assert Operation.PAUSE in PERMISSIONS[Role.RESPONDER]


def test_allows_adds_roles_up_and_ignores_unknown_ones() -> None:
    """Several roles give the union; a role nobody knows gives nothing."""
    actor = Actor("x", frozenset({"alert_sender", "viewer", "root"}))
    assert {operation for operation in Operation if allows(actor, operation)} == {
        Operation.SEND_ALERTS,
        Operation.READ,
        Operation.READ_AUDIT,
    }
    assert not any(allows(SYSTEM, operation) for operation in Operation)
