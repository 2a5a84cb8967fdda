"""What of an object's values may stand in a plan: nothing that is, or looks like, a secret. Pure.

Plans and receipts are kept, shown and sent to people. Hiding too much costs a look into the cluster; hiding too little can't be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from actions.kubernetes.paths import ABSENT, Absent
from remediator.model import JSON
from remediator.secrets.scrubber import Scrubber

HIDDEN = "«not shown»"
"""Stands in plans for a value that may be a secret."""

_LONGEST = 300
_ENDS = r"(?:keys?|auth|salt|dsn|pass|pw|pin|otp|psk|jwt|hmac|seed|mnemonic|kubeconfig|cert|certificate|connection[_.-]?string)"
_HUMPS = r"(?:Keys?|Auth|Salt|D[Ss][Nn]|P(?:ass|w|W|in|IN|sk|SK)|O(?:tp|TP)|J(?:wt|WT)|H(?:mac|MAC)|Seed|Cert)"
"""The same as the last word of camelCase."""
_STRUCTURE = ("Name", "Ref", "Secrets", "Seconds", "topologyKey", "LabelKeys")
"""Ends of the API's own fields that say where a secret is, not what (`secretName`, `imagePullSecrets`), or have nothing to do with one."""
_NAME = re.compile(
    rf"""(?ix) passw | passphrase | pwd | secret | token | credential | cookie
    | (?:api|access|private|signing|encryption|master|client)[_.-]?key | (?:^|[_.-]){_ENDS}$
    | (?-i: (?<=[a-z0-9]){_HUMPS}$)"""
)


def is_secret_name(name: str) -> bool:
    """Tell whether a variable or key of that name usually holds a secret.

    >>> [name for name in ("DB_PASSWORD", "API_KEY", "LOG_LEVEL", "dsn", "KEYSPACE", "dbPass", "compass") if is_secret_name(name)]
    ['DB_PASSWORD', 'API_KEY', 'dsn', 'dbPass']
    """
    return _NAME.search(name) is not None


def is_secret_value(value: str) -> bool:
    """Tell whether a text has the shape of a secret: a token, a key, a URL with a password.

    >>> is_secret_value("postgres://shop:hunter2@db/shop"), is_secret_value("redis://cache:6379/0")
    (True, False)
    """
    return Scrubber().text(value) != value


def is_secret(place: Sequence[str], value: JSON | Absent) -> bool:
    """Tell whether what stands at a place may be a secret, by the names that lead to it, by names inside, or by its looks.

    A reference to a Secret is none: it only says where one is kept.
    """
    if value is ABSENT or value is None or isinstance(value, bool):
        return False
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str) and "value" in value and is_secret([value["name"]], value["value"]):
            return True
        return any(is_secret([*place, key], item) for key, item in value.items() if not key.endswith(_STRUCTURE))
    if isinstance(value, list):
        return any(_is_secret_flag(item) or is_secret(place, item) for item in value)
    own = [part.strip("[]") for part in place[-2:] if not part.endswith(_STRUCTURE)]
    return any(map(is_secret_name, own)) or is_secret_value(str(value))


def _is_secret_flag(item: JSON) -> bool:
    """Tell whether an argument is a flag whose value, behind it or the next one, is a secret: `--db-password`, `hunter2`."""
    return isinstance(item, str) and item.startswith("-") and is_secret_name(item.lstrip("-").partition("=")[0])


def shown(place: Sequence[str], value: JSON | Absent) -> JSON:
    """Return a value as a plan shows it: hidden where it may be a secret, cut where it is long, None for nothing."""
    if value is ABSENT:
        return None
    if is_secret(place, value):
        return HIDDEN
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}… ({len(value)} characters)"
    return value
