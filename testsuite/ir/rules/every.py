"""All samples, of all rule files."""

from __future__ import annotations

from testsuite.ir.rules import (
    samples_contract,
    samples_elementwise,
    samples_pool,
    samples_reduce,
    samples_rows,
    samples_scatter,
    samples_shape,
)

FILES = (
    samples_contract,
    samples_elementwise,
    samples_pool,
    samples_reduce,
    samples_rows,
    samples_scatter,
    samples_shape,
)
SAMPLES = [sample for file in FILES for sample in file.samples()]
