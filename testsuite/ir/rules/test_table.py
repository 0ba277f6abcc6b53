"""Every operator of the table, held against torch on real tensors (samples*.py, law.py)."""

from __future__ import annotations

import pytest
import torch
from testsuite.ir.rules.every import SAMPLES
from testsuite.ir.rules.law import violations
from testsuite.ir.rules.sample import Sample

from tokopt.ir.rules import load_rules


def test_every_name_is_an_operator_of_torch() -> None:
    unknown = []
    for name in load_rules():
        namespace, _, operator = name.partition("::")
        if not hasattr(getattr(torch.ops, namespace), operator):
            unknown.append(name)
    assert unknown == []


def test_every_operator_has_a_sample() -> None:
    assert set(load_rules()) - {sample.name for sample in SAMPLES} == set()


def test_every_sample_is_of_an_operator_in_the_table() -> None:
    assert {sample.name for sample in SAMPLES} - set(load_rules()) == set()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_what_the_rule_says_is_what_the_operator_does(sample: Sample) -> None:
    assert violations(sample) == []
