"""Outliers and what they lead to."""

import pytest
from testsuite.passes.kv.rows import rows_like_a_cache

from tokopt.passes.kv.headroom import chosen
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.kv.samples import Samples

SIDES = ("key", "value")


@pytest.mark.parametrize("side", SIDES)
def test_rows_without_outliers_get_the_format_that_was_asked_for(side):
    for format in FORMATS.values():
        found = chosen(format, side, Samples([rows_like_a_cache(300)]))
        assert found.format is format and found.note == ""


def test_a_token_far_from_the_others_leads_to_a_finer_format_and_a_reason():
    rows = rows_like_a_cache(300)
    rows[0, 1, 7] *= 60
    found = chosen(FORMATS["int4"], "key", Samples([rows]))
    assert found.format == FORMATS["half"]
    assert "int4 is off by" in found.note and "keys of head 1" in found.note
    assert "int8 is off by" in found.note and found.note.endswith("half instead")
    rows = rows_like_a_cache(300)
    rows[0, 1, 7] *= 20
    assert chosen(FORMATS["int4"], "value", Samples([rows])).format == FORMATS["int8"]
    assert chosen(FORMATS["fp8"], "value", Samples([rows])).note == ""  # its step follows the value


def test_every_format_leads_to_half_precision_in_the_end():
    for format in FORMATS.values():
        names = [format.name]
        while (finer := format.finer()) is not None:
            format = finer
            names.append(format.name)
        assert names[-1] == "half" and len(names) < 7
