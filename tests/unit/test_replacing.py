"""The quick `replace` does what the library's does."""

from __future__ import annotations

import dataclasses

import pytest

from remediator.replacing import replace
from tests.builders import alert, incident, plan, run


@pytest.mark.parametrize("record", [alert(), incident(), run(), plan("a")])
def test_replace_gives_what_the_library_gives(record: object) -> None:
    """Equal, of the same class, and the original untouched."""
    name = dataclasses.fields(record)[0].name  # type: ignore[arg-type]
    before = dataclasses.asdict(record)  # type: ignore[call-overload]
    made = replace(record, **{name: "other"})  # type: ignore[type-var]
    assert made == dataclasses.replace(record, **{name: "other"})  # type: ignore[type-var]
    assert type(made) is type(record)
    assert dataclasses.asdict(record) == before  # type: ignore[call-overload]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.id = "changed"  # type: ignore[attr-defined]


def test_replace_refuses_a_name_that_is_no_field() -> None:
    """A typing error must not make an attribute that nobody reads."""
    with pytest.raises(TypeError, match="no such field"):
        replace(run(), reeson="x")  # type: ignore[call-arg]
