"""What may be run in containers: data never becomes an option or code, and only what the operator lists is allowed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from actions.kubernetes import KubernetesConnection
from actions.kubernetes.commands import fill, is_allowed, refusal

ALLOW = (
    ("truncate", "-s", "0", "/var/log/*"),
    ("pkill", "-KILL", "--older", "*", "-x", "ffmpeg"),
    ("df", "**"),
    ("kill", "-USR2", "[0-9]*"),
)


def test_a_value_fills_one_whole_element() -> None:
    """Whatever a label holds, it stays one element; braces that are no place are literal."""
    value = "a b; rm -rf / $(id) | `id`"
    assert fill(["logger", "{text}"], {"text": value}) == ("logger", value)
    assert fill(["logger", "{other}", "x{text}", "{text}"], {"text": "v"}) == ("logger", "{other}", "x{text}", "v")
    assert fill(["echo", "{print}"], {}) == ("echo", "{print}")


@pytest.mark.parametrize("value", ["-rf", "--help", "", "a\nb", "a\0b", "x" * 1001])
def test_a_value_is_never_an_option_nor_unprintable(value: str) -> None:
    """An option from a label would change what the command does."""
    with pytest.raises(ValueError, match=r"args\.file"):
        fill(["rm", "{file}"], {"file": value})


def test_after_a_double_dash_a_value_may_begin_with_a_dash() -> None:
    """There it can't be taken for an option."""
    assert fill(["rm", "--", "{file}"], {"file": "-rf"}) == ("rm", "--", "-rf")


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "{x}"],
        ["/bin/bash", "-c", "echo", "{x}"],
        ["busybox", "sh", "-c", "true", "{x}"],
        ["env", "{x}"],
        ["python3.11", "-c", "{x}"],
        ["timeout", "5", "{x}"],
        ["xargs", "{x}"],
        ["node", "-e", "{x}"],
        ["find", "{x}", "-delete"],
        ["{x}", "-v"],
    ],
)
def test_data_never_goes_where_it_could_be_code(argv: list[str]) -> None:
    """Interpreters and programs that run other programs take constants only, and the program itself is one."""
    with pytest.raises(ValueError, match="constant"):
        fill(argv, {"x": "id"})


def test_constants_may_be_a_script() -> None:
    """A constant shell command is the author's own text; whether it may run is the operator's word."""
    argv = fill(["sh", "-c", "truncate -s 0 /var/log/*.log"], {})
    assert not is_allowed(argv, ALLOW)
    assert is_allowed(argv, [("sh", "-c", "truncate -s 0 /var/log/[*].log")])


def test_every_value_has_a_place() -> None:
    """A value without a place is a mistake."""
    with pytest.raises(ValueError, match=r"args\.b has no place"):
        fill(["ls", "{a}"], {"a": "x", "b": "y"})


def test_argv_is_bounded_and_names_a_program() -> None:
    """Nothing is not a command."""
    for argv in ([], [" "], ["ls"] * 65, ["ls", "x" * 9000], ["ls", "a\0"]):
        with pytest.raises(ValueError, match="argv"):
            fill(argv, {})


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["truncate", "-s", "0", "/var/log/app.log"], True),
        (["truncate", "-s", "1", "/var/log/app.log"], False),
        (["truncate", "-s", "0", "/var/log/app.log", "/etc/passwd"], False),
        (["truncate", "-s", "0"], False),
        (["truncate", "-s", "0", "/var/log/../../etc/passwd"], False),
        (["/usr/bin/truncate", "-s", "0", "/var/log/app.log"], False),
        (["pkill", "-KILL", "--older", "600", "-x", "ffmpeg"], True),
        (["pkill", "-KILL", "--older", "--inverse", "-x", "ffmpeg"], False),
        (["df"], True),
        (["df", "-h", "--total"], True),
        (["kill", "-USR2", "1"], True),
        (["kill", "-USR2", "-1"], False),
        (["KILL", "-USR2", "1"], False),
        (["rm", "-rf", "/"], False),
        ([], False),
    ],
)
def test_only_whole_commands_on_the_list_are_allowed(argv: list[str], allowed: bool) -> None:
    """Element by element, options only where a pattern names them."""
    assert is_allowed(argv, ALLOW) is allowed
    assert (refusal(argv or [""], ALLOW, cluster="prod") is None) is allowed


def test_no_list_allows_nothing() -> None:
    """Running commands is asked for, never a default."""
    connection = KubernetesConnection(server="https://kube.example.com", timeout=timedelta(seconds=5))
    assert not is_allowed(["df"], connection.exec_allow)
    assert "exec_allow" in (refusal(["df"], connection.exec_allow, cluster="prod") or "")


def test_a_pattern_for_every_program_is_refused() -> None:
    """`**` alone would be a shell."""
    for pattern in (["**"], ["*", "x"], []):
        with pytest.raises(ValidationError, match="exec_allow"):
            KubernetesConnection(server="https://kube.example.com", exec_allow=(tuple(pattern),))


def test_a_value_that_stands_twice_is_guarded_at_its_first_place() -> None:
    """`--` guards what comes after it, not the same value before it; a rule's author may allow options by name."""
    with pytest.raises(ValueError, match="would be taken for an option"):
        fill(["rm", "{a}", "--", "{a}"], {"a": "-rf"})
    assert fill(["rm", "--", "{a}", "{a}"], {"a": "-rf"}) == ("rm", "--", "-rf", "-rf")
    assert fill(["tune", "{a}"], {"a": "-5"}, options={"a"}) == ("tune", "-5")
