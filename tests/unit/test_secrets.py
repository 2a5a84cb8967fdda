"""Secrets are read when needed, named in errors, and never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from remediator.action import SecretRef
from remediator.errors import PermanentError, TemporaryError
from remediator.secrets.reading import LARGEST, SecretStore, name_of
from remediator.secrets.scrubber import REDACTED, Scrubber

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/db-AbCdEf"


@pytest.fixture
def scrubber() -> Scrubber:
    """Make an empty scrubber."""
    return Scrubber()


async def test_environment_is_read_and_learned(scrubber: Scrubber) -> None:
    """What was revealed is hidden from then on."""
    store = SecretStore({"PW": "hunter22"}, scrubber)
    assert await store.reveal(SecretRef(env="PW")) == "hunter22"
    assert scrubber.text("login with hunter22 failed") == f"login with {REDACTED} failed"


async def test_file_is_read_again_each_time(scrubber: Scrubber, tmp_path: Path) -> None:
    """A rotated file counts from the next use; one trailing newline is not part of the secret, blanks are."""
    path = tmp_path / "pw"
    store = SecretStore({}, scrubber)
    for written, value in (("first-one\n", "first-one"), (" second one \r\n", " second one "), ("third\n\n", "third\n")):
        path.write_bytes(written.encode())
        assert await store.reveal(SecretRef(file=str(path))) == value


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * (LARGEST + 1)])
async def test_unusable_file_is_refused_without_its_content(scrubber: Scrubber, tmp_path: Path, content: bytes) -> None:
    """Empty, binary and huge files are no secrets; the message names the file only."""
    path = tmp_path / "pw"
    path.write_bytes(content)
    with pytest.raises(PermanentError, match=str(path)) as caught:
        await SecretStore({}, scrubber).reveal(SecretRef(file=str(path)))
    assert "xff" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_missing_secrets_are_named(scrubber: Scrubber, tmp_path: Path) -> None:
    """The message says what to set, and never guesses an empty value."""
    store = SecretStore({"EMPTY": ""}, scrubber)
    for ref, words in (
        (SecretRef(env="ABSENT"), "env ABSENT is not set"),
        (SecretRef(env="EMPTY"), "env EMPTY is empty"),
        (SecretRef(file=str(tmp_path / "no")), "No such file"),
        (SecretRef(file=str(tmp_path)), "Is a directory"),
        (SecretRef(kubernetes="prod/shop/db/password"), "kubernetes prod/shop/db/password can't be read here"),
    ):
        with pytest.raises(PermanentError, match=words):
            await store.reveal(ref)


def test_reference_is_named_without_value() -> None:
    """A reference reads like the settings."""
    assert name_of(SecretRef(aws="shop/db#password")) == "aws shop/db#password"


class AwsDouble:
    """Secrets Manager answered by botocore's own Stubber, which checks requests and answers against AWS' service model.

    The answers are those of the API reference of GetSecretValue. No account is at hand to ask the real service.
    """

    def __init__(self) -> None:
        self.regions: list[str | None] = []
        self.client = boto3.client("secretsmanager", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
        self.stub = Stubber(self.client)
        self.stub.activate()

    def __call__(self, region: str | None) -> Any:
        self.regions.append(region)
        return self.client


@pytest.mark.parametrize(
    ("reference", "text", "value"),
    [("shop/db", "plain-secret", "plain-secret"), (f"{ARN}#password", '{"username": "app", "password": "hunter22"}', "hunter22")],
)
async def test_aws_secret_is_read_whole_or_by_field(scrubber: Scrubber, reference: str, text: str, value: str) -> None:
    """`#KEY` takes one field of a JSON secret; the region comes from the ARN; clients are made once; each use asks again."""
    aws = AwsDouble()
    store = SecretStore({}, scrubber, aws=aws)
    for _ in range(2):
        aws.stub.add_response(
            "get_secret_value", {"Name": "shop/db", "SecretString": text}, {"SecretId": reference.split("#", maxsplit=1)[0]}
        )
        assert await store.reveal(SecretRef(aws=reference)) == value
    assert aws.regions == ["eu-west-1" if reference.startswith("arn:") else None]
    assert scrubber.text(value) == REDACTED
    aws.stub.assert_no_pending_responses()


@pytest.mark.parametrize("text", ["not json", '{"other": "x"}', '{"password": 5}', "[1]"])
async def test_aws_field_that_is_not_there_is_refused(scrubber: Scrubber, text: str) -> None:
    """The message names the reference, not the secret around it."""
    aws = AwsDouble()
    aws.stub.add_response("get_secret_value", {"SecretString": text})
    with pytest.raises(PermanentError, match="shop/db#password") as caught:
        await SecretStore({}, scrubber, aws=aws).reveal(SecretRef(aws="shop/db#password"))
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "error"),
    [("ThrottlingException", TemporaryError), ("ResourceNotFoundException", PermanentError), ("AccessDeniedException", PermanentError)],
)
async def test_aws_errors_say_whether_waiting_helps(scrubber: Scrubber, code: str, error: type[Exception]) -> None:
    """Throttling passes; a missing secret or right does not."""
    aws = AwsDouble()
    aws.stub.add_client_error("get_secret_value", service_error_code=code, service_message="no")
    with pytest.raises(error, match=code):
        await SecretStore({}, scrubber, aws=aws).reveal(SecretRef(aws="shop/db"))


async def test_binary_aws_secret_is_refused(scrubber: Scrubber) -> None:
    """Bytes are no password."""
    aws = AwsDouble()
    aws.stub.add_response("get_secret_value", {"SecretBinary": b"x"})
    with pytest.raises(PermanentError, match="binary"):
        await SecretStore({}, scrubber, aws=aws).reveal(SecretRef(aws="shop/db"))


async def test_all_secrets_of_settings_are_hidden_before_their_first_use(scrubber: Scrubber, tmp_path: Path) -> None:
    """Values in the environment and in files are learned from a tree of settings; what is missing waits for its first use."""
    (tmp_path / "token").write_text("from-a-file-8s7d\n")
    tree = {
        "connections": {"orders": {"kind": "postgres", "password": {"env": "ORDERS_PASSWORD"}}},
        "prometheus": {"bearer": {"file": str(tmp_path / "token")}, "headers": {"X": {"env": "MISSING"}}},
        "alertmanager": [{"basic": {"username": "u", "password": {"env": "OTHER_PASSWORD"}}}],
    }
    await SecretStore({"ORDERS_PASSWORD": "orders-91kd", "OTHER_PASSWORD": "other-27fj"}, scrubber).learn(tree)
    assert scrubber.text("orders-91kd other-27fj from-a-file-8s7d") == " ".join([REDACTED] * 3)
