"""The collector rests during a pass and is as it was behind it."""

from __future__ import annotations

import gc

import pytest

from tokopt.ir.collector import uncollected


@uncollected
def asked(fails: bool) -> bool:
    if fails:
        raise ValueError
    return gc.isenabled()


def test_the_collector_is_off_inside_and_on_behind_also_behind_an_error() -> None:
    assert not asked(False) and gc.isenabled()
    with pytest.raises(ValueError):
        asked(True)
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        asked(False)
        assert not gc.isenabled()
    finally:
        gc.enable()
