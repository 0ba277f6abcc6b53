from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from testsuite.ir.load_archives import dynamic

from tokopt.ir.load import load
from tokopt.ir.unused_symbols import LOADER, without_notices


def test_a_range_of_a_symbol_that_no_value_has_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported = dynamic()
    (symbol, span) = next(iter(exported.range_constraints.items()))
    exported.range_constraints[type(symbol)("u77", integer=True)] = span
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.export.load(tmp_path / "model.pt2")
    assert "Symbol u77 did not appear" in caplog.text
    caplog.clear()
    load(tmp_path / "model.pt2")
    assert caplog.text == ""


def test_every_other_notice_passes_and_the_filter_goes_with_the_block(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger(LOADER)
    filters = list(logger.filters)
    with without_notices():
        logger.warning("Symbol %s did not appear in the graph that was deserialized", "u0")
        logger.warning("Symbol %s is odd", "u0")
    assert [record.getMessage() for record in caplog.records] == ["Symbol u0 is odd"]
    assert logger.filters == filters
