"""`kubernetes.restore_secret`: fills what is missing, overwrites nothing unasked, and says no value anywhere."""

from __future__ import annotations

import base64
import json
import logging
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.restore_secret import RestoreSecret
from actions.kubernetes.secret_commands import SecretCommand
from actions.kubernetes.secret_values import unsaid
from remediator.action import Settled
from remediator.errors import NotFound, NotReversible, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.kube.workloads import Workloads

Object = dict[str, Any]
RESTORE = RestoreSecret()
VALUE = "correct-horse-battery-staple"
SHORT = "7421"
"""A secret that anybody guesses from a digest."""


def at(namespace: str, **more: Any) -> Object:
    """Return parameters for the Secret `app`."""
    wish = {"cluster": "prod", "namespace": namespace, "secret": "app", "keys": ["JWT_SECRET"], "from_secret": {"name": "source"}}
    return {name: value for name, value in {**wish, **more}.items() if value is not None}


def b64(value: str) -> str:
    """Return a value as a Secret holds it."""
    return base64.b64encode(value.encode()).decode()


async def secret(run: Workloads, name: str, more: Mapping[str, Any] | None = None, **data: str) -> Object:
    """Make a Secret."""
    return await run.create("Secret", {"metadata": {"name": name}, "stringData": data, **(more or {})})


async def data(run: Workloads, name: str = "app") -> dict[str, str]:
    """Return the values of a Secret."""
    found = (await run.get("Secret", name)).get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in found.items()}


@pytest.fixture
async def both(run: Workloads) -> None:
    """The Secret `app` without its key, and `source` with it."""
    await secret(run, "app", other="1")
    await secret(run, "source", JWT_SECRET=VALUE, PIN=SHORT)


async def plan(ctx: LocalContext, namespace: str, **wish: Any) -> Plan:
    """Plan to fill `app`."""
    return await RESTORE.plan(RESTORE.Params(**at(namespace, **wish)), ctx)


# --- from another Secret ---------------------------------------------------------------------------------------------------------


async def test_missing_key_is_filled_from_another_secret(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """The seed's authentication failures: JWT_SECRET is missing, and comes back; nothing else of the Secret changes."""
    made = await plan(ctx, namespace)
    assert [(change.field, change.before, change.after) for change in made.changes] == [
        ("data[JWT_SECRET]", "missing", f"as in secret {namespace}/source")
    ]
    receipt = await RESTORE.apply(made, ctx)
    assert await data(run) == {"other": "1", "JWT_SECRET": VALUE}
    assert (await RESTORE.verify(made, receipt, ctx)).health is Health.HEALTHY
    assert (await plan(ctx, namespace)).noop


async def test_value_that_is_there_is_not_overwritten(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """Only with `overwrite: true`, and then it can't be undone, which the plan says; an empty value counts as missing."""
    await run.merge("Secret", "app", {"stringData": {"JWT_SECRET": "other", "PIN": ""}})
    with pytest.raises(PlanRefused, match="has a value for JWT_SECRET already"):
        await plan(ctx, namespace)
    assert (await plan(ctx, namespace, keys=["PIN"])).changes[0].before == "empty"
    made = await plan(ctx, namespace, overwrite=True)
    assert "can't be undone" in made.warnings[-1]
    receipt = await RESTORE.apply(made, ctx)
    assert (await data(run))["JWT_SECRET"] == VALUE
    with pytest.raises(NotReversible, match="the old value of JWT_SECRET was overwritten"):
        await RESTORE.undo(made, receipt, ctx)


async def test_secret_that_is_absent_is_made_only_when_told(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Made with its type; its undo takes the keys away and leaves it there, empty."""
    await secret(run, "source", JWT_SECRET=VALUE)
    with pytest.raises(PlanRefused, match="set `create: true`"):
        await plan(ctx, namespace)
    made = await plan(ctx, namespace, create=True)
    with pytest.raises(NotFound):
        await run.get("Secret", "app")
    receipt = await RESTORE.apply(made, ctx)
    assert (await run.get("Secret", "app"))["type"] == "Opaque"
    assert await data(run) == {"JWT_SECRET": VALUE}
    ctx.key = "test/1/undo"
    await RESTORE.apply(await RESTORE.undo(made, receipt, ctx), ctx)
    assert await data(run) == {}


async def test_undo_takes_away_only_what_is_still_ours(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """Somebody has set another value since: the server knows who wrote it last, so no value needs to be kept to tell."""
    made = await plan(ctx, namespace)
    receipt = await RESTORE.apply(made, ctx)
    back = await RESTORE.undo(made, receipt, ctx)
    await run.merge("Secret", "app", {"stringData": {"JWT_SECRET": "rotated"}})
    with pytest.raises(PlanRefused, match="somebody else has written JWT_SECRET since"):
        await RESTORE.undo(made, receipt, ctx)
    ctx.key = "test/1/undo"
    with pytest.raises(PreconditionChanged, match="somebody else has written JWT_SECRET since"):
        await RESTORE.apply(back, ctx)
    assert (await data(run))["JWT_SECRET"] == "rotated"


async def test_secret_that_changed_is_not_written(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """Filled, made anew or changed by somebody since the plan: nothing is written."""
    made = await plan(ctx, namespace)
    await run.merge("Secret", "app", {"stringData": {"JWT_SECRET": "theirs"}})
    with pytest.raises(PreconditionChanged, match="JWT_SECRET is present by now, planned was missing"):
        await RESTORE.apply(made, ctx)
    replacing = await plan(ctx, namespace, overwrite=True)
    await run.merge("Secret", "app", {"stringData": {"JWT_SECRET": "theirs again"}})
    with pytest.raises(PreconditionChanged, match="was changed since the plan was made"):
        await RESTORE.apply(replacing, ctx)
    await run.delete("Secret", "app")
    await secret(run, "app")
    with pytest.raises(PreconditionChanged, match="another object now"):
        await RESTORE.apply(made, ctx)


async def test_secrets_of_the_system_are_neither_source_nor_target(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """A service account's token must not be copied anywhere; immutable and unknown ones are refused."""
    token = await run.create(
        "Secret",
        {
            "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "default"}},
            "type": "kubernetes.io/service-account-token",
        },
    )
    with pytest.raises(PlanRefused, match="belongs to the system"):
        await plan(ctx, namespace, keys=["token"], from_secret={"name": token["metadata"]["name"]})
    with pytest.raises(PlanRefused, match="belongs to the system"):
        await plan(ctx, namespace, secret="token")
    await secret(run, "fixed", {"immutable": True}, a="1")
    with pytest.raises(PlanRefused, match="is immutable"):
        await plan(ctx, namespace, secret="fixed")
    with pytest.raises(PlanRefused, match=r"secret .*/none is not there"):
        await plan(ctx, namespace, from_secret={"name": "none"})
    with pytest.raises(PlanRefused, match="has no value for 'NONE'"):
        await plan(ctx, namespace, keys=["NONE"])


async def test_source_must_be_within_the_connections_scope(kube: Any, run: Workloads, both: None, namespace: str) -> None:
    """A rule must not fetch a value out of a namespace that the connection may not act in."""
    settings = kube.connection().model_copy(update={"scope": {"namespace": (namespace,)}})
    ctx = LocalContext({"prod": settings})
    with pytest.raises(PlanRefused, match="can't be read from"):
        await plan(ctx, namespace, from_secret={"namespace": "kube-system", "name": "source"})
    assert not (await plan(ctx, namespace, from_secret={"namespace": namespace, "name": "source"})).noop
    await ctx.aclose()


async def test_operator_that_owns_the_secret_is_named(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """External secrets and certificates are written by their controllers, which would put their own value back."""
    owner = {"apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "name": "app", "uid": "1", "controller": True}
    await run.merge("Secret", "app", {"metadata": {"ownerReferences": [owner]}})
    with pytest.raises(PlanRefused, match="managed by ExternalSecret app"):
        await plan(ctx, namespace)
    await run.merge("Secret", "app", {"metadata": {"ownerReferences": None, "annotations": {"cert-manager.io/certificate-name": "app"}}})
    with pytest.raises(PlanRefused, match="managed by cert-manager"):
        await plan(ctx, namespace)


# --- from a command --------------------------------------------------------------------------------------------------------------


def commands(namespace: str, script: str, **more: Any) -> Mapping[str, SecretCommand]:
    """Return the settings of one command, a script that prints."""
    argv = (sys.executable, "-c", script, "{namespace}", "{secret}", "{key}")
    return {"vault": SecretCommand(**{"argv": argv, "fills": (f"{namespace}/app/*",), **more})}


async def filled_by(kube: Any, namespace: str, declared: Mapping[str, SecretCommand], **wish: Any) -> tuple[Plan, LocalContext]:
    """Plan to fill `app` from the command `vault`; return the plan and a context that has the command."""
    ctx = LocalContext({"prod": kube.connection().model_copy(update={"secret_commands": declared})})
    return await plan(ctx, namespace, **{"from_secret": None, "from_command": "vault", **wish}), ctx


async def test_command_is_run_at_apply_and_never_while_planning(
    kube: Any, run: Workloads, both: None, namespace: str, tmp_path: Path
) -> None:
    """Planning has no effects; the command gets the names of what it fills, and what it prints is the value."""
    seen = tmp_path / "seen"
    script = f"import sys; open({str(seen)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n'); print({VALUE!r})"
    made, ctx = await filled_by(kube, namespace, commands(namespace, script))
    assert not seen.exists()
    assert made.changes[0].after == "as in secret command 'vault'"
    await RESTORE.apply(made, ctx)
    assert seen.read_text() == f"{namespace} app JWT_SECRET\n"
    assert await data(run) == {"other": "1", "JWT_SECRET": VALUE}
    await ctx.aclose()


async def test_command_fills_only_what_the_settings_let_it(kube: Any, both: None, namespace: str) -> None:
    """Declared in the settings and bound to what it may fill; a rule can name one, and nothing more."""
    with pytest.raises(PlanRefused, match=r"may not fill .*/app/JWT_SECRET; it may fill other/app/\*"):
        await filled_by(kube, namespace, commands("other", "print(1)"))
    with pytest.raises(PlanRefused, match="no secret command 'nowhere'; it has vault"):
        await filled_by(kube, namespace, commands(namespace, "print(1)"), from_command="nowhere")
    made, ctx = await filled_by(kube, namespace, commands(namespace, "print(1)"))
    await ctx.aclose()
    narrower = LocalContext({"prod": kube.connection().model_copy(update={"secret_commands": commands("other", "print(1)")})})
    with pytest.raises(PlanRefused, match="may not fill"):  # the settings were changed between approval and act
        await RESTORE.apply(made, narrower)
    await narrower.aclose()


@pytest.mark.parametrize(
    ("script", "more", "error", "said"),
    [
        ("import sys; print('leak-7421'); sys.exit(3)", {}, PermanentError, "failed with exit code 3"),
        ("import sys; print('leak-7421', file=sys.stderr); sys.exit(1)", {}, PermanentError, "failed with exit code 1"),
        ("pass", {}, PermanentError, "printed nothing"),
        ("print('leak-7421' * 100000)", {}, PermanentError, "printed more than 256 KiB"),
        ("import time; print('leak-7421', flush=True); time.sleep(60)", {"timeout": "300ms"}, TemporaryError, "did not end within 0.3 s"),
        ("", {"argv": ("/nowhere/vault",)}, PermanentError, "can't be started: No such file or directory"),
    ],
)
async def test_failing_command_writes_nothing_and_leaks_nothing(
    *, kube: Any, run: Workloads, both: None, namespace: str, script: str, more: Object, error: type[Exception], said: str
) -> None:
    """Exit codes, silence, floods, hangs: nothing is written, and what it printed is in no error."""
    made, ctx = await filled_by(kube, namespace, commands(namespace, script, **more))
    with pytest.raises(error, match=said) as raised:
        await RESTORE.apply(made, ctx)
    assert "leak-7421" not in "".join(traceback.format_exception(raised.value))
    assert await data(run) == {"other": "1"}
    await ctx.aclose()


async def test_command_gets_no_more_of_the_environment_than_declared(
    kube: Any, run: Workloads, both: None, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's own credentials stay with the daemon."""
    monkeypatch.setenv("DAEMON_TOKEN", "secret")
    monkeypatch.setenv("VAULT_ADDR", "https://vault")
    script = "import os; print(sorted(name for name in os.environ if name in ('DAEMON_TOKEN', 'VAULT_ADDR')))"
    made, ctx = await filled_by(kube, namespace, commands(namespace, script, pass_env=("VAULT_ADDR",)))
    await RESTORE.apply(made, ctx)
    assert (await data(run))["JWT_SECRET"] == "['VAULT_ADDR']"
    await ctx.aclose()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"argv": ("vault",), "fills": ("a/b/c",)}, "absolute path"),
        ({"argv": ("/{secret}",), "fills": ("a/b/c",)}, "a constant"),
        ({"argv": ("/bin/vault",), "fills": ("*",)}, "NAMESPACE/SECRET/KEY"),
        ({"argv": ("/bin/vault",), "fills": ()}, "at least 1 item"),
        ({"argv": ("/bin/vault",), "fills": ("a/b/c",), "timeout": "5m"}, "at most 1m"),
    ],
)
def test_loose_settings_of_a_command_are_errors(settings: Object, said: str) -> None:
    """What a command is and what it may fill is said exactly."""
    with pytest.raises(ValidationError, match=said):
        SecretCommand(**settings)


# --- nowhere a value ---------------------------------------------------------------------------------------------------------------


async def test_value_is_nowhere_but_in_the_secret(
    ctx: LocalContext, run: Workloads, both: None, namespace: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a value nor a digest of it in plans, receipts, verdicts, logs at debug level, or on the standard streams."""
    caplog.set_level(logging.DEBUG)
    texts = []
    for number, wish in enumerate([{}, {"keys": ["PIN"]}, {"keys": ["PIN", "JWT_SECRET"], "overwrite": True}]):
        if number == 2:
            await run.merge("Secret", "source", {"stringData": {"PIN": "7422", "JWT_SECRET": f"{VALUE}2"}})
        ctx.key = f"test/{number}"
        made = await plan(ctx, namespace, **wish)
        receipt = await RESTORE.apply(made, ctx)
        verdict, reading = await RESTORE.verify(made, receipt, ctx), await RESTORE.reconcile(made, ctx)
        texts += [json.dumps(to_json(made)), json.dumps(to_json(receipt)), verdict.message, reading.message]
        if number < 2:
            texts.append(json.dumps(to_json(await RESTORE.undo(made, receipt, ctx))))
    out, err = capfd.readouterr()
    whole = "\n".join([*texts, caplog.text, out, err])
    assert namespace in whole
    for value in (VALUE, "7422", f"{VALUE}2"):
        for form in (value, b64(value)):
            assert form not in whole
    assert (await data(run))["PIN"] == "7422"


async def test_servers_words_about_a_value_are_not_repeated(ctx: LocalContext, both: None, namespace: str, monkeypatch: Any) -> None:
    """A webhook that refuses a write may quote it; no double can make the real server do so, so the client's error is made up here."""
    made = await plan(ctx, namespace)
    client = ctx._clients["prod"]

    async def refuse(*_: Any, **__: Any) -> Object:
        raise PermanentError(f'admission webhook denied: {{"JWT_SECRET": "{b64(VALUE)}"}}')

    monkeypatch.setattr(client, "patch", refuse)
    with pytest.raises(PermanentError, match="the server's words are not repeated") as raised:
        await RESTORE.apply(made, ctx)
    shown = "".join(traceback.format_exception(raised.value))
    assert b64(VALUE) not in shown
    assert VALUE not in shown


@pytest.mark.parametrize("error", [OutcomeUnknown("x 7421 y"), TemporaryError("x 7421 y"), PreconditionChanged("x 7421 y")])
def test_what_may_be_done_about_an_error_stays_known(error: Exception) -> None:
    """An outcome that is unknown stays unknown, also without the server's words."""
    kept = OutcomeUnknown if isinstance(error, OutcomeUnknown) else TemporaryError if isinstance(error, TemporaryError) else PermanentError
    with pytest.raises(kept, match="not repeated"), unsaid([b"7421"], what="it"):
        raise error


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"from_command": "vault"}, "exactly one of from_secret and from_command"),
        ({"from_secret": None}, "exactly one of from_secret and from_command"),
        ({"keys": []}, "at least 1 item"),
        ({"keys": ["a", "a"]}, "twice"),
        ({"renamed": {"b": "c"}}, "renamed is for keys"),
        ({"secret": "source"}, "from itself"),
        ({"from_secret": None, "from_command": "vault", "keys": ["-x"]}, "would be an option"),
        ({"type": "kubernetes.io/service-account-token", "create": True}, "Input should be"),
    ],
)
def test_ambiguous_wishes_are_errors_at_load(wish: Object, said: str) -> None:
    """What is ambiguous never becomes a plan."""
    with pytest.raises(ValidationError, match=said):
        RESTORE.Params(**at("shop", **wish))


# --- rights and contract -------------------------------------------------------------------------------------------------------------


async def test_declared_rights_are_sufficient_and_no_more_than_needed(account: Any, run: Workloads, both: None, namespace: str) -> None:
    """Two Secrets by name, and none else; without the right on the source the missing verb is named."""
    needed = RESTORE.needed({"secret": "app", "from_secret": {"name": "source"}})
    assert {(verb, one.names) for one in needed for verb in one.verbs} == {("get", ()), ("patch", ()), ("get", ("source",))}
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["app"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["source"], "verbs": ["get"]},
    ]
    ctx = await account(rules)
    made = await plan(ctx, namespace)
    receipt = await RESTORE.apply(made, ctx)
    await RESTORE.reconcile(made, ctx)
    await RESTORE.undo(made, receipt, ctx)
    blind = await account(rules[:1])
    with pytest.raises(Exception, match='cannot get resource "secrets"'):
        await plan(blind, namespace, keys=["PIN"])


class TestRestoreSecret(ActionConformance):
    action: ClassVar[Any] = RESTORE
    crash_points: ClassVar[int] = 20

    @pytest.fixture(autouse=True)
    async def where(self, run: Workloads, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.run, self.kube, self.namespace = run, kube, namespace

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Make both Secrets."""
        await secret(self.run, "app", other="1", PIN="")
        await secret(self.run, "source", JWT_SECRET=VALUE, PIN=SHORT)
        return LocalContext({"prod": self.kube.connection()}), at(self.namespace, keys=["JWT_SECRET", "PIN"])

    async def state(self) -> JSON:
        """Return the values."""
        return {name: await data(self.run, name) for name in ("app", "source")}

    async def disturb(self) -> None:
        """Let somebody fill it."""
        await self.run.merge("Secret", "app", {"stringData": {"PIN": "theirs"}})

    async def cleanup(self) -> None:
        """Delete both."""
        for name in ("app", "source"):
            await self.run.delete("Secret", name)


async def test_lost_answer_is_told_by_the_note(ctx: LocalContext, run: Workloads, both: None, namespace: str) -> None:
    """After a crash the note says that it was this step, also when somebody has changed the value since."""
    made = await plan(ctx, namespace)
    assert (await RESTORE.reconcile(made, ctx)).settled is Settled.NOT_APPLIED
    await RESTORE.apply(made, ctx)
    await run.merge("Secret", "app", {"stringData": {"JWT_SECRET": "rotated"}})
    assert (await RESTORE.reconcile(made, ctx)).settled is Settled.APPLIED
