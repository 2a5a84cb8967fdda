"""One settings file, read strictly, with every fault at its place (`semantics.md`, 26)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from remediator.action import SecretRef
from remediator.errors import InvalidFiles
from remediator.model import Authority
from remediator.registry import Registry
from remediator.settings import Role, Settings, load_settings, read_settings, reloadable_changes
from remediator.settings.part import MIB, Part
from remediator.settings.reference import EXAMPLE, settings_reference

HASH = hashlib.sha256(b"a long random token").hexdigest()
OTHER = hashlib.sha256(b"another token").hexdigest()
ROOT = Path(__file__).parents[2]

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Give a function that loads a text as settings file."""

    def load_text(text: str, environ: Mapping[str, str] | None = None) -> Settings:
        path = tmp_path / "remediator.yaml"
        path.write_text(text)
        return load_settings(path, environ or {})

    return load_text


def refused(load: Load, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the faults as `line:column: message`, without the file's directory."""
    with pytest.raises(InvalidFiles) as caught:
        load(text, environ)
    return [str(replace(problem, file=problem.file.rpartition("/")[2])) for problem in caught.value.problems]


# --- defaults


def test_s26_a_fresh_install_changes_nothing() -> None:
    """Dry run is on, it listens on loopback only, and nobody may call it."""
    settings = Settings()
    assert settings.dry_run
    assert settings.listen.host == "127.0.0.1"
    assert settings.identities == {}
    assert settings.store.path == Path("/var/lib/remediator/remediator.sqlite")
    assert settings.limits.max_acting == 10
    assert settings.limits.authority is Authority.AUTO
    assert settings.listen.max_body == 16 * MIB


def test_s21_default_severities_page_soon() -> None:
    """sev1 3 min, sev2 10 min, sev3 30 min, sev4 2 h; a severity nobody declared pages like the most urgent one."""
    settings = Settings()
    spans = {name: severity.page_after for name, severity in settings.severities.items()}
    assert spans == {"sev1": timedelta(minutes=3), "sev2": timedelta(minutes=10), "sev3": timedelta(minutes=30), "sev4": timedelta(hours=2)}
    assert settings.page_after("sev4") == timedelta(hours=2)
    assert settings.page_after("unheard-of") == timedelta(minutes=3)


def test_settings_are_frozen() -> None:
    """Nothing changes settings in place: a reload makes new ones."""
    with pytest.raises(ValidationError):
        Settings().dry_run = False  # type: ignore[misc]


def models(model: type[Part]) -> Iterator[type[Part]]:
    """Give all parts that a reload may look into."""
    yield model
    for info in model.model_fields.values():
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(default, Part):
            yield from models(type(default))


def test_s26_every_field_says_what_it_means_and_whether_a_reload_applies_it() -> None:
    """Operators and the reference page need both."""
    for model in models(Settings):
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            assert isinstance(info.json_schema_extra, dict)
            assert isinstance(info.json_schema_extra["reload"], bool), f"{model.__name__}.{name}"


# --- reading


def test_whole_file_is_read(load: Load, tmp_path: Path) -> None:
    """Every section has its place; relative paths start at the file's directory, wherever a path stands."""
    settings = load(
        f"""
store: {{url: "sqlite:state/r.sqlite"}}
listen: {{port: 0, tls: {{cert: tls.crt, key: /etc/tls.key}}}}
dry_run: false
limits: {{authority: approve, min_cooldown: 1h30m}}
connections:
  prod: {{kind: kubernetes, kubeconfig: kube/config, token: {{file: token}}}}
  db: {{kind: postgres, ca_file: /abs/ca.pem, password: {{env: PW}}}}
alertmanager: [http://a:9093/, {{url: http://b:9093}}]
prometheus: {{url: https://p, bearer: {{file: prom}}, ca: ca.pem}}
identities: {{anna: {{token_sha256: [{HASH}], roles: [approver], groups: [sre]}}}}
severities: {{p0: {{page_after: 90s}}}}
escalation: {{default: {{notify: [{{notify.slack: {{connection: chat}}}}]}}}}
contacts: {{sre: {{email: sre@example.com}}}}
packs: {{web: {{path: packs/web, vars: {{file: {{file: stays}}, replicas: 3}}}}}}
protected: ["redis:cache/"]
actions_path: [own]
log: {{format: console, level: debug}}
public_url: https://remediator.example.com/
"""
    )
    assert settings.store.path == tmp_path / "state/r.sqlite"
    assert settings.listen.tls is not None
    assert (settings.listen.tls.cert, settings.listen.tls.key) == (tmp_path / "tls.crt", Path("/etc/tls.key"))
    assert settings.limits.min_cooldown == timedelta(minutes=90)
    assert settings.connections["prod"] == {
        "kind": "kubernetes",
        "kubeconfig": str(tmp_path / "kube/config"),
        "token": {"file": str(tmp_path / "token")},
    }
    assert settings.connections["db"]["ca_file"] == "/abs/ca.pem"
    assert [peer.url for peer in settings.alertmanager] == ["http://a:9093", "http://b:9093"]
    assert settings.prometheus is not None
    assert settings.prometheus.bearer == SecretRef(file=str(tmp_path / "prom"))
    assert settings.prometheus.ca == str(tmp_path / "ca.pem")
    assert settings.identities["anna"].roles == {Role.APPROVER}
    assert settings.packs["web"].path == tmp_path / "packs/web"
    assert settings.packs["web"].vars == {"file": {"file": "stays"}, "replicas": 3}
    assert settings.actions_path == (tmp_path / "own",)
    assert settings.public_url == "https://remediator.example.com"
    assert settings.pages_url == "https://remediator.example.com/ui"
    assert not settings.dry_run


def test_empty_sections_are_defaults(load: Load) -> None:
    """A section whose lines are all commented out is as if it were not there; above all, `dry_run:` stays on."""
    assert load("dry_run:\nlimits:\nconnections:\npacks:\n") == Settings()


def test_s26_all_faults_are_reported_at_once_with_their_places(load: Load) -> None:
    """File, line and column, what was found, and the nearest right word; one run of the editor fixes all."""
    found = refused(
        load,
        "dry_run: maybe\n"
        "limits: {authority: atuo, workers: 0, max_actng: 5, lease: 10 minutes}\n"
        "connections: {x: {host: h}, 'bad name': {kind: redis}}\n"
        "alertmanager: [http://a, {url: ftp://x}]\n"
        "identities: {anna: {roles: [aprover]}}\n"
        "severitys: {}\n"
        "escalation: {default: {notify: [{a: {}, b: {}}]}}\n",
    )
    expected = [
        r"1:10: dry_run: .*valid boolean.*not 'maybe'",
        r"2:21: limits\.authority: .*not 'atuo'; did you mean auto\?",
        r"2:36: limits\.workers: .*greater than or equal to 1, not 0",
        r"2:39: limits\.max_actng is not known; did you mean max_acting",
        r"2:60: limits\.lease: '10 minutes' is not a duration; write it like 90s",
        r"3:18: connections\.x: kind is missing",
        r"3:29: connections\.bad name is not a name",
        r"4:32: alertmanager\[1\]\.url: not an http",
        r"5:29: identities\.anna\.roles\[0\]: .*not 'aprover'; did you mean approver\?",
        r"6:1: severitys is not known; did you mean severities\?",
        r"7:33: escalation\.default\.notify\[0\]: one action",
    ]
    assert len(found) == len(expected)
    for fault, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(rf"remediator\.yaml:{pattern}.*", fault), fault


@pytest.mark.parametrize(
    "text",
    [
        "prometheus: {url: http://p, bearer: SECRET}",
        "prometheus: {url: http://p, bearer: {env: A, flie: SECRET}}",
        "store: {url: 'postgresql://u@h/d', password: SECRET}",
        "store: {url: 'postgresql://u:SECRET@h/d'}",
        "alertmanager: ['http://u:SECRET@a']",
        "identities: {a: {token_sha256: [SECRET]}}",
        "identities: {a: {password_sha256: SECRET}}",
        "identities: {a: SECRET}",
        "connections: {a: {kind: kubernetes, in_cluster: true, token: SECRET}}",
        "connections: {a: {kind: slack, url: SECRET}}",
        "connections: {a: SECRET}",
        "connections: SECRET",
    ],
)
def test_s26_a_secret_written_by_mistake_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    """Messages end in logs and terminals: what may be a secret is never shown, only where it stands."""
    path = tmp_path / "remediator.yaml"
    path.write_text(text.replace("SECRET", "hunter2hunter2"))
    with pytest.raises(InvalidFiles) as caught:
        read_settings(path, {}).check(Registry())
    assert "hunter2hunter2" not in str(caught.value)
    assert f"{path}:1:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store: {url: 'mysql://h/d'}", "no such kind of store"),
        ("store: {url: 'sqlite://relative.sqlite'}", "not a SQLite URL"),
        ("store: {url: 'sqlite:'}", "not a SQLite URL"),
        ("store: {password: {kubernetes: a/b/c/d}}", "may have to heal"),
        ("store: {password: {env: A, file: b}}", "exactly one place"),
        ("store: {password: {}}", "exactly one place"),
        ("prometheus: {url: 'http://p', username: x}", "username is not known"),
        ("prometheus: 'http://p?x=1'", "no query"),
        ("severities: {}", "at least one"),
        ("escalation: {other: {}}", "no policy `default`"),
        (f"identities: {{a: {{token_sha256: [{HASH}]}}, b: {{token_sha256: [{HASH}]}}}}", "a and b have the same token"),
        ("identities: {a: {certificate_subject: CN=x}, b: {certificate_subject: CN=x}}", "a and b have the same"),
        (f"identities: {{a: {{token_sha256: [{hashlib.sha256(b'').hexdigest()}]}}}}", "empty text"),
        (f"identities: {{a: {{token_sha256: [{HASH.upper()}]}}}}", "lower-case"),
        ("identities: {remediator: {}}", "the daemon itself"),
        ("alertmanager: [{url: http://a, bearer: {env: A}}, http://b]", "same sign-in"),
        ("protected: [shop/api]", "not a canonical id"),
        ("packs: {web: {path: ''}}", "empty path|a path"),
        ("listen: {port: 70000}", "less than or equal to 65535"),
        ("limits: {max_percent: 0}", "greater than or equal to 1"),
        ("limits: {lease: 1s}", "greater than or equal to"),
        ("- a\n- b", "mapping"),
        ("a: b: c", "quotes|mapping"),
        ("dry_run: true\ndry_run: false", "dry_run"),
    ],
)
def test_wrong_settings_are_refused(load: Load, text: str, words: str) -> None:
    """What can't be meant is an error at start, not a surprise at three in the morning."""
    assert re.search(words, "\n".join(refused(load, text)))


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere, or to a directory, is told plainly."""
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InvalidFiles, match="can't be read"):
            load_settings(path, {})


# --- environment


def test_s26_environment_overrides_the_file(load: Load) -> None:
    """`REMEDIATOR_A__B` sets a.b, as YAML would; keys of the file are found whatever their case and dashes."""
    settings = load(
        "limits: {max_acting: 5, workers: 7}\nconnections: {Prod-DB: {kind: postgres, host: old}}\n",
        {
            "REMEDIATOR_DRY_RUN": "false",
            "REMEDIATOR_LIMITS__MAX_ACTING": "3",
            "REMEDIATOR_LIMITS__LEASE": "45s",
            "REMEDIATOR_ALERTMANAGER": "[http://a:9093]",
            "REMEDIATOR_CONNECTIONS__PROD_DB__HOST": "new",
            "REMEDIATOR_LOG__LEVEL": "debug",
        },
    )
    assert not settings.dry_run
    assert (settings.limits.max_acting, settings.limits.workers, settings.limits.lease) == (3, 7, timedelta(seconds=45))
    assert settings.alertmanager[0].url == "http://a:9093"
    assert settings.connections == {"Prod-DB": {"kind": "postgres", "host": "new"}}
    assert settings.log.level == "debug"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REMEDIATOR_DRYRUN", "false", "dryrun is not known; did you mean dry_run"),
        ("REMEDIATOR_LIMIT__WORKERS", "1", "did you mean limits"),
        ("REMEDIATOR_LIMITS__WORKRES", "1", "did you mean workers"),
        ("REMEDIATOR_LIMITS__WORKERS", "many", "not 'many'"),
        ("REMEDIATOR_LIMITS__WORKERS__X", "1", "limits.workers is no mapping"),
        ("REMEDIATOR_LIMITS", "{a", "1:"),
        ("REMEDIATOR_DRY_RUN", "maybe", "not 'maybe'"),
    ],
)
def test_wrong_variable_is_named(load: Load, name: str, value: str, words: str) -> None:
    """A fault that came from the environment names the variable, not a line of the file."""
    (found,) = refused(load, "limits: {workers: 5}", {name: value})
    assert found.startswith(f"${name}:")
    assert words in found


def test_foreign_variables_are_left_alone(load: Load) -> None:
    """Kubernetes sets some for a Service called remediator, and secrets may be named so; neither stops the daemon."""
    environ = {
        "REMEDIATOR_PORT": "tcp://10.0.0.1:9095",
        "REMEDIATOR_SERVICE_HOST": "10.0.0.1",
        "REMEDIATOR_PORT_9095_TCP_ADDR": "10.0.0.1",
        "REMEDIATOR_CONFIG": "/etc/remediator.yaml",
        "REMEDIATOR_DB_PASSWORD": "{x: [",
        "remediator_dry_run": "false",
    }
    assert load("dry_run: true", environ) == Settings()


# --- what the catalogue knows


def test_hardly_meant_settings_are_warned_of() -> None:
    """A daemon that can page nobody, ask nobody and hear nobody says so; a complete one is silent."""
    assert len(Settings().warnings) == 4
    complete = {
        "escalation": {"default": {"notify": [{"notify.slack": {}}]}},
        "alertmanager": ["http://a"],
        "identities": {"am": {"roles": ["alert_sender"]}},
        "packs": {"web": {"path": "x"}},
    }
    assert Settings.model_validate(complete).warnings == ()
    (warning,) = Settings.model_validate({**complete, "protected": ["redis:cahce/", "alertmanager:alertmanager/-/x"]}).warnings
    assert "'redis:cahce/' protects nothing" in warning


def test_connections_and_escalation_are_held_against_the_catalogue(tmp_path: Path) -> None:
    """Kinds, their fields, and notifying actions with their parameters are checked where they stand."""
    path = tmp_path / "remediator.yaml"
    path.write_text(
        "connections:\n"
        "  a: {kind: rediss}\n"
        "  b: {kind: redis, host: h, prot: 5}\n"
        "escalation:\n"
        "  default: {notify: [{notify.slak: {}}, {redis.flush_db: {}}, {notify.slack: {chanel: x}}]}\n"
        "prometheus: {url: http://p, headers: {host: {env: X}}}\n"
    )
    loaded = read_settings(path, {"REMEDIATOR_CONNECTIONS__C__KIND": "nosuch"})
    with pytest.raises(InvalidFiles) as caught:
        loaded.check(Registry())
    found = "\n".join(str(problem) for problem in caught.value.problems)
    for words in (
        r":2:13: connections\.a: there is no kind 'rediss'; did you mean redis",
        r":3:29: connections\.b: prot is not known; did you mean port",
        r":5:23: escalation\.default\.notify\[0\]: 'notify\.slak' is no action that notifies people; did you mean notify\.slack",
        r":5:42: .*'redis\.flush_db' is no action that notifies",
        r":6:13: prometheus: .*host.* can't be set as a header",
        r"\$REMEDIATOR_CONNECTIONS__C__KIND:1:1: connections\.c: there is no kind 'nosuch'",
    ):
        assert re.search(words, found), found
    assert "chanel is not known" in found


# --- reload


def test_s26_reload_applies_what_it_can_and_names_what_waits() -> None:
    """Fields marked so take effect; the others keep their old value until a restart, and are named."""
    old = Settings()
    new = Settings.model_validate(
        {
            "dry_run": False,
            "limits": {"workers": 5, "max_acting": 2, "lease": "1m"},
            "listen": {"port": 1, "tls": {"cert": "a", "key": "b"}},
            "store": {"url": "sqlite:/other.sqlite"},
            "log": {"level": "debug"},
            "protected": ["redis:cache/"],
            "prometheus": "http://p",
            "actions_path": ["x"],
        }
    )
    merged, waiting = reloadable_changes(old, new)
    assert sorted(waiting) == ["actions_path", "limits.lease", "limits.workers", "listen.port", "listen.tls", "log.level", "store.url"]
    assert (merged.dry_run, merged.limits.max_acting, merged.protected) == (False, 2, ("redis:cache/",))
    assert merged.prometheus == new.prometheus
    assert (merged.limits.workers, merged.limits.lease) == (old.limits.workers, old.limits.lease)
    assert (merged.store, merged.listen, merged.log, merged.actions_path) == (old.store, old.listen, old.log, old.actions_path)
    assert reloadable_changes(merged, new) == (merged, waiting)
    assert reloadable_changes(old, old) == (old, [])


# --- schema and reference


def test_reference_page_is_current() -> None:
    """docs/reference/settings.md is what `python -m remediator.settings.reference` prints; print it again after a change."""
    assert (ROOT / "docs/reference/settings.md").read_text() == settings_reference()


def test_example_of_the_reference_page_is_valid(tmp_path: Path) -> None:
    """Readers copy it: it loads, and the catalogue agrees."""
    path = tmp_path / "remediator.yaml"
    path.write_text(EXAMPLE)
    loaded = read_settings(path, {})
    loaded.check(Registry())
    assert loaded.settings.dry_run


def test_unknown_keys_are_refused_everywhere() -> None:
    """No part swallows a typing error."""
    for model in (*models(Settings), *_item_models()):
        assert model.model_config.get("extra") == "forbid", model


def _item_models() -> Iterator[type[BaseModel]]:
    from remediator.settings import model as module

    yield from (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Part))
