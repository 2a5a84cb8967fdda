"""What refusals mean: the recorded ones of a real 1.36 server, and those that take a server of another age or kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actions.kubernetes.answers import Answer, error_of
from actions.kubernetes.audit import Review
from actions.kubernetes.discovery import parse_core, parse_groups, parse_release
from actions.kubernetes.errors import AlreadyExists, ApplyConflict, Blocked, FieldConflict
from remediator.action import Right
from remediator.errors import Conflict, NotFound, PermanentError, PermissionMissing, RemediatorError, TemporaryError

BLOCKED = {
    "kind": "Status",
    "status": "Failure",
    "message": "Cannot evict pod as it would violate the pod's disruption budget.",
    "reason": "TooManyRequests",
    "details": {
        "causes": [{"reason": "DisruptionBudget", "message": "The disruption budget web needs 5 healthy pods and has 5 currently"}]
    },
    "code": 429,
}
"""As a 1.36 server was recorded to answer."""
REVIEW = {
    "kind": "SelfSubjectRulesReview",
    "status": {
        "resourceRules": [
            {
                "verbs": ["create"],
                "apiGroups": ["authorization.k8s.io"],
                "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            },
            {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
            {"verbs": ["get", "list"], "apiGroups": ["apps"], "resources": ["deployments"]},
        ],
        "incomplete": False,
    },
}
"""The same server, asked by a narrow account."""


def refused(code: int, body: Any, **headers: str) -> RemediatorError:
    """Return the error for one answer."""
    whole = body if isinstance(body, bytes) else json.dumps({"kind": "Status", "status": "Failure", **body}).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of(Answer(code, fields, whole), cluster="prod", request="POST /x")


def test_an_eviction_against_a_budget_is_blocked_and_names_it() -> None:
    """A 429 of its own kind, also where it names a time to wait (1.20 does while it has not seen the budget's last change)."""
    error = refused(429, BLOCKED, retry_after="10")
    assert isinstance(error, Blocked)
    assert error.budget == "web"
    assert "needs 5 healthy pods and has 5 currently" in str(error)
    said = "The disruption budget api is still being processed by the server."
    early = refused(429, {**BLOCKED, "details": {"causes": [{"reason": "DisruptionBudget", "message": said}]}})
    assert isinstance(early, Blocked)
    assert early.budget == "api"


def test_a_pod_with_several_budgets_is_blocked_though_the_server_says_500() -> None:
    """Servers can't evict it at all; nothing was done, and nothing is unknown."""
    said = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
    error = refused(500, {"message": said, "code": 500})
    assert isinstance(error, Blocked)
    assert error.budget == ""


def test_conflicts_of_server_side_apply_name_fields_and_managers() -> None:
    """Every one of them; a manager whose name can't be read is shown in the server's own words."""
    causes = [
        {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl" using apps/v1', "field": ".spec.replicas"},
        {"reason": "FieldManagerConflict", "message": "conflict with somebody", "field": ".spec.paused"},
    ]
    error = refused(409, {"reason": "Conflict", "message": "Apply failed with 2 conflicts", "details": {"causes": causes}})
    assert isinstance(error, ApplyConflict)
    assert error.fields[0] == FieldConflict(".spec.replicas", "kubectl", 'conflict with "kubectl" using apps/v1')
    assert ".spec.replicas belongs to kubectl; .spec.paused belongs to conflict with somebody" in str(error)


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (409, {"reason": "AlreadyExists", "message": "exists"}, AlreadyExists),
        (409, {"reason": "Conflict", "message": "modified"}, Conflict),
        (409, {"reason": "Other", "message": "?"}, PermanentError),
        (404, {"reason": "NotFound", "message": "x", "details": {"name": "x"}}, NotFound),
        (404, {"reason": "NotFound", "message": "no such API", "details": {}}, PermanentError),
        (
            403,
            {"message": 'pods is forbidden: User "u" cannot list resource "pods" in API group "" in the namespace "n"'},
            PermissionMissing,
        ),
        (403, {"message": "forbidden: exceeded quota: none"}, PermanentError),
        (410, {"reason": "Expired", "message": "The provided continue parameter is too old"}, TemporaryError),
        (500, {"message": "etcdserver: request timed out"}, TemporaryError),
        (503, b"<html>upstream</html>", TemporaryError),
    ],
)
def test_what_each_refusal_is(code: int, body: Any, kind: type[RemediatorError]) -> None:
    """Whether it may work later, and whether somebody else was faster."""
    assert type(refused(code, body)) is kind


@pytest.mark.parametrize("details", ["x", [1], {"causes": "abc"}, {"causes": [1]}])
@pytest.mark.parametrize("code", [400, 404, 409, 422])
def test_a_garbled_status_is_a_refusal_all_the_same(code: int, details: Any) -> None:
    """Nothing was written, whatever else it says: that must not get lost in how it says so."""
    assert isinstance(refused(code, {"reason": "NotFound", "message": "no", "details": details}), RemediatorError)


def test_plain_text_is_shown_without_what_terminals_obey() -> None:
    """Kubelets explain themselves in plain text; a page of HTML is nobody's explanation."""
    assert "(container not found (x) y)" in str(refused(500, b"container not found (x)\x1b\n y", content_type="text/plain; charset=utf-8"))
    assert "html" not in str(refused(502, b"<html>secret</html>", content_type="text/html"))


def test_what_everybody_may_do_is_no_excess() -> None:
    """The recorded review: two rules of system:basic-user, and the account's own."""
    review = Review.parse("shop", REVIEW)
    assert review.excess([]) == {Right("apps/deployments", "get", "shop"), Right("apps/deployments", "list", "shop")}
    assert review.excess([Right("apps/deployments", verb) for verb in ("get", "list")]) == set()
    assert review.excess([Right("apps/deployments", "get", "shop", "web")]) == review.excess([])


def test_what_is_no_discovery_is_not_taken_for_one() -> None:
    """A proxy's page must not look as if a group were not served."""
    for parse in (parse_groups, parse_core, parse_release):
        with pytest.raises(ValueError, match=r"instead of|no release"):
            parse({"kind": "Page"})
    whole = {
        "kind": "APIGroupList",
        "groups": [{"name": "autoscaling", "versions": [{"version": "v1"}, {"version": "v2"}], "preferredVersion": {"version": "v2"}}],
    }
    assert parse_groups(whole) == {"autoscaling": ("v2", "v1")}
