from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tokopt.ir.errors import InputError
from tokopt.targets.records import from_json, to_json


@dataclass(frozen=True)
class Inner:
    number: float | None
    sizes: tuple[int | str, ...]


@dataclass(frozen=True)
class Outer:
    name: str
    on: bool
    inner: Mapping[str, Inner]
    span: tuple[int, int | None]


RECORD = Outer("é\n", True, {"b": Inner(None, (1, "s0")), "a": Inner(0.1, ())}, (1, None))


def test_a_record_survives_json() -> None:
    assert from_json(Outer, to_json(RECORD), "file") == RECORD


def test_equal_records_give_equal_text_whatever_the_order_of_their_mappings() -> None:
    other = Outer("é\n", True, dict(reversed(RECORD.inner.items())), (1, None))
    assert to_json(other) == to_json(RECORD)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_survive(number: float) -> None:
    back = from_json(Inner, to_json(Inner(number, ())), "file").number
    assert back is not None and (back == number or (math.isnan(back) and math.isnan(number)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"on": true', '"on": 1', "Outer.on is 1, not a bool"),
        ('"number": 0.1', '"number": "x"', "Outer.inner.a.number"),
        ('"number": 0.1', '"number": true', "Outer.inner.a.number"),
        ('"number": 0.1', '"nomber": 0.1', "lacks ['number']"),
        ('"on": true', '"on": true, "more": 1', "unknown ['more']"),
        ('"s0"', "[]", "Outer.inner.b.sizes[1]"),
        ('"span": [\n    1,', '"span": [\n', "Outer.span"),
        ("{", "", "not valid JSON"),
    ],
)
def test_a_wrong_field_is_named(old: str, new: str, says: str) -> None:
    text = to_json(RECORD)
    assert old in text
    with pytest.raises(InputError) as caught:
        from_json(Outer, text.replace(old, new, 1), "file.json")
    assert says in caught.value.what and caught.value.where == "file.json"


def test_nesting_without_end_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not valid JSON"):
        from_json(Outer, "[" * 100_000, "file")
