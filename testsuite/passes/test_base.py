import dataclasses

import pytest
from testsuite.passes.samples import Settings

from tokopt.passes.base import kebab


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Normalize", "normalize"),
        ("InsertStage", "insert-stage"),
        ("KVQuantize", "kv-quantize"),
        ("Raise2D", "raise2-d"),
        ("ToKV", "to-kv"),
    ],
)
def test_a_class_name_becomes_kebab_case(name: str, text: str) -> None:
    assert kebab(name) == text


def test_options_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings("a", 1).keep = 2  # type: ignore[misc]
