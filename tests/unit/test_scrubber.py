"""No secret leaves the daemon: neither one that was revealed nor what looks like one."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.model import JSON, Alert
from remediator.secrets.scrubber import MOST, REDACTED, UNMISTAKABLE, Scrubber

SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=6, max_size=40).filter(
    lambda text: text not in REDACTED
)
TEXTS = st.text(max_size=20)


def leaves(value: JSON) -> Iterator[str]:
    """Give every key and every scalar of a tree as text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield str(value)


def encoded(secret: str, before: str, after: str) -> list[str]:
    """Give the texts in which a secret may come back."""
    whole = before + secret + after
    return [
        whole,
        quote(whole),
        quote(whole, safe=""),
        quote_plus(whole),
        base64.b64encode(whole.encode()).decode(),
        base64.urlsafe_b64encode(whole.encode()).decode(),
        json.dumps(whole),
        json.dumps({"text": json.dumps({"inner": whole})}),
        json.dumps(whole, ensure_ascii=False),
        html.escape(whole),
        whole.encode().hex(),
    ]


def decoded_parts(text: str) -> Iterator[str]:
    """Undo base64 on each stretch around what was hidden, at every offset, as somebody who looks for secrets would."""
    for part in text.replace("-", "+").replace("_", "/").split(REDACTED):
        for start in range(min(4, len(part))):
            cut = part[start:].rstrip("=")
            cut = cut[: len(cut) // 4 * 4]
            if cut.isascii() and cut.replace("+", "").replace("/", "").isalnum():
                yield base64.b64decode(cut).decode("utf-8", "replace")


@given(SECRETS, TEXTS, TEXTS)
def test_no_learned_secret_survives_in_any_form(secret: str, before: str, after: str) -> None:
    """Plain, URL-encoded, base64 (within a longer text), JSON in JSON, HTML, hex: a learned value is gone from all of them."""
    scrubber = Scrubber()
    scrubber.learn(secret)
    for text in encoded(secret, before, after):
        clean = scrubber.text(text)
        assert secret not in clean
        assert REDACTED in clean
        assert not any(secret in part for part in decoded_parts(clean))


@given(
    st.lists(SECRETS, min_size=1, max_size=4),
    st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12),
    st.data(),
)
def test_no_learned_secret_survives_in_any_tree(secrets: list[str], shape: JSON, data: st.DataObject) -> None:
    """Keys and values at any depth are clean, whatever other secrets stand beside or overlap, and the shape stays."""
    scrubber = Scrubber()
    for secret in secrets:
        scrubber.learn(secret)

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key + data.draw(st.sampled_from(["", *secrets])): fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return "".join(data.draw(st.lists(st.sampled_from(secrets) | TEXTS, max_size=3)))

    tree = fill(shape)
    clean = scrubber.json(tree)
    for leaf in leaves(clean):
        for secret in secrets:
            assert secret not in leaf.replace(REDACTED, "\0")
    assert type(clean) is type(tree)
    if isinstance(tree, dict | list):
        assert len(clean) == len(tree)


FRAGMENTS = st.sampled_from(
    [
        *("password=", '"token": "', "Bearer ", "abc123def456", "://", "user:", "@host", "'", '"', "\\", " ", "\n", "&", "«", REDACTED),
        *("Authorization: ", "requirepass ", "eyJhbGciOiJI.", "AKIAABCDEFGHIJKLMNOP", "identified by '", "api_key: ", "secret", "hunter22"),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"),
    ]
)


@given(st.lists(FRAGMENTS | TEXTS, max_size=12), SECRETS)
def test_scrubbing_twice_is_scrubbing_once(pieces: list[str], secret: str) -> None:
    """Events pass through more than once (engine, log, notification); a second pass changes nothing."""
    scrubber = Scrubber()
    scrubber.learn(secret)
    scrubber.learn("hunter22")
    once = scrubber.text("".join([*pieces, secret, *pieces]))
    assert scrubber.text(once) == once


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("password=abc,def x", "password=«redacted» x"),
        ('{"password": "a b\\"c", "user": "x"}', '{"password": "«redacted»", "user": "x"}'),
        ('{\\"api_key\\": \\"abc\\", \\"user\\": \\"x\\"}', '{\\"api_key\\": \\"«redacted»\\", \\"user\\": \\"x\\"}'),
        ("PGPASSWORD=abc psql", "PGPASSWORD=«redacted» psql"),
        ("AWS_SECRET_ACCESS_KEY=abc/def", "AWS_SECRET_ACCESS_KEY=«redacted»"),
        ("host=db password='a b' user=x", "host=db password='«redacted»' user=x"),
        ("ALTER ROLE x PASSWORD 'abc def'", "ALTER ROLE x PASSWORD '«redacted»'"),
        ("config set requirepass foobared", "config set requirepass «redacted»"),
        ("?token=abc&x=1", "?token=«redacted»&x=1"),
        ("auth=abc x", "auth=«redacted» x"),
        ("AUTH \t\x1c\x1f= abc x", "AUTH \t\x1c\x1f= «redacted» x"),
        ("é auth = abc x", "é auth = «redacted» x"),
        ("masterauth foobared", "masterauth «redacted»"),
        ("Bearer abc123def456", "Bearer «redacted»"),
        ("curl -H 'Authorization: Basic dXNlcjpwYXNz' x", "curl -H 'Authorization: «redacted»' x"),
        ("Cookie: session=1; a=2\nHost: x", "Cookie: «redacted»\nHost: x"),
        ("postgres://u:p@ss@host/db", "postgres://u:«redacted»@host/db"),
        ("redis://:pw@h1:6379,rediss://default:p/w@h2", "redis://:«redacted»@h1:6379,rediss://default:«redacted»@h2"),
        ("https://hooks.slack.com/services/T0/B0/X1 ok", "https://hooks.slack.com/services/«redacted» ok"),
        ("https://discord.com/api/webhooks/1/x", "https://discord.com/api/webhooks/«redacted»"),
        ("id AKIAABCDEFGHIJKLMNOP.", "id «redacted»."),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "«redacted»"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- b", "a «redacted» b"),
        ("a -----BEGIN PRIVATE KEY-----\ncut off", "a «redacted»"),
        ("xoxb-1234567890-abc ghp_abcdefghijklmnopqrstuvwxyz", "«redacted» «redacted»"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, clean: str) -> None:
    """Nobody revealed these to us; they stand in logs, SQL and URLs of the systems we look at."""
    assert Scrubber().text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        'FATAL: password authentication failed for user "app"',
        "Basic authentication required, token: expired",
        "https://host:8080/path?x=a@b",
        "postgresql://app@host/db",
        "kubernetes:prod/shop/secret/jwt-token",
        "INC-20250101-001: rolled back deployment/shop/api to revision 41",
        "redis://cache:6379/0 evicted_keys=12",
    ],
)
def test_ordinary_text_stays_readable(text: str) -> None:
    """What people need at three in the morning is not hidden."""
    assert Scrubber().text(text) == text


def test_values_under_secret_keys_are_hidden_in_trees() -> None:
    """A key that says password hides its scalar; references, flags and empty values stay."""
    tree = {
        "DB_PASSWORD": "x",
        "accessToken": 12345,
        "apiKey": "k",
        "password": {"env": "PW"},
        "token": True,
        "pwd": "",
        "tokens": "3 left",
    }
    hidden = dict.fromkeys(("DB_PASSWORD", "accessToken", "apiKey"), REDACTED)
    assert Scrubber().json(tree) == {**tree, **hidden}


def test_numbers_that_are_secrets_are_hidden() -> None:
    """A numeric PIN that comes back as a number is hidden too; other numbers keep their type."""
    scrubber = Scrubber()
    scrubber.learn("12345678")
    assert scrubber.json([12345678, 12, 1.5, None, False]) == [REDACTED, 12, 1.5, None, False]


def test_each_line_of_a_long_secret_is_hidden() -> None:
    """A library that quotes one line of a key file gives nothing away."""
    scrubber = Scrubber()
    scrubber.learn("first-line-of-the-key\nsecond-line-of-the-key\n")
    assert scrubber.text("parse error near second-line-of-the-key") == f"parse error near {REDACTED}"


def test_short_values_are_not_learned() -> None:
    """A password `no` would hide half of every sentence."""
    scrubber = Scrubber()
    for word in ("", "no", "short", "  no   "):
        scrubber.learn(word)
    assert scrubber.text("no, it is a short no") == "no, it is a short no"


def test_overlapping_secrets_leave_no_rest() -> None:
    """Two secrets that overlap are hidden as one stretch."""
    scrubber = Scrubber()
    scrubber.learn("abcdefgh")
    scrubber.learn("efghijkl")
    assert scrubber.text("<abcdefghijkl>") == f"<{REDACTED}>"


def test_memory_is_bounded_and_keeps_what_is_in_use() -> None:
    """Short-lived tokens push out the oldest value, not the one that is revealed again and again."""
    scrubber = Scrubber()
    scrubber.learn("in-use-always")
    scrubber.learn("used-once-only")
    for number in range(MOST - 1):
        scrubber.learn(f"token-{number:06d}")
        if number % 100 == 0:
            scrubber.learn("in-use-always")
    assert scrubber.text("in-use-always") == REDACTED
    assert scrubber.text("used-once-only") == "used-once-only"


@pytest.mark.parametrize(
    "piece",
    ["://:a", "eyJaaaaaaaa-", "password='", "bearer ", "-----BEGIN PRIVATE KEY-----", "password        ", "\\", "x-aaaa-key", "://u:p@a"],
)
def test_hostile_text_takes_no_time(piece: str) -> None:
    """Annotations are written by others; 100 KB of the worst of them must not stop the daemon."""
    text = piece * (100_000 // len(piece)) + "password"
    began = time.perf_counter()
    Scrubber().text(text)
    assert time.perf_counter() - began < 2


def _alert(**labels: str) -> Alert:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    annotations = {"summary": f"login failed with {labels.get('path', 'nothing')}"}
    return Alert("0123456789abcdef", True, labels, annotations, now)


def test_label_with_a_revealed_secret_is_left_out() -> None:
    """A label that holds a secret is missing afterwards, hence unknown to rules; the others and the fingerprint stay as they were."""
    scrubber = Scrubber()
    scrubber.learn("correct-horse-battery")
    found = scrubber.alert(_alert(alertname="Login", path="/login?p=correct-horse-battery"))
    assert found.labels == {"alertname": "Login"}
    assert "horse" not in found.annotations["summary"]
    assert found.fingerprint == "0123456789abcdef"


def test_label_that_is_only_a_weak_password_stays() -> None:
    """A password that is also a word (postgres) does not take the labels of half the alerts away."""
    scrubber = Scrubber()
    scrubber.learn("postgres")
    assert scrubber.alert(_alert(alertname="Down", job="postgres-exporter")).labels["job"] == "postgres-exporter"


@pytest.mark.parametrize("others", [0, 50, 300])
@pytest.mark.parametrize("secret", ["a.b*c|d(e[f\\", "tab\there\nand there", "pa ss#wo-rd&~<>%", "пароль-семь", "«quoted» secret"])
def test_a_learned_secret_is_found_whatever_it_is_made_of_and_however_many_others_there_are(secret: str, others: int) -> None:
    """The quick look for all forms at once knows no special characters, and more forms than it takes are looked for one by one."""
    scrubber = Scrubber()
    for number in range(others):
        scrubber.learn(f"other-secret-{number:05d}")
    scrubber.learn(secret)
    for text in (secret, f"before {secret} after", f"ärger {secret}", f"{secret}{secret}"):
        assert secret not in scrubber.text(text)
        assert scrubber.holds(text) or len(secret) < UNMISTAKABLE
    assert scrubber.text("nothing of that kind") == "nothing of that kind"
