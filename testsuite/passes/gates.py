"""All gates of a plan on one sample, as a test asks for them."""

from collections.abc import Sequence

from testsuite.zoo.sample import Sample
from torch import Tensor

from tokopt.ir.facts import Facts, analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, Verdict, validate


def facts_of(sample: Sample) -> Facts:
    """Return the facts of a sample's program in normal form."""
    return analyse(normalize(sample.exported))


def failures(facts: Facts, stages: Sequence[Stage], inputs: Sequence[Tensor]) -> list[str]:
    """Return the messages of the gates that fail; identity and oracle must both be among them."""
    plan = Plan(tuple(stages))
    applied = apply_plan(facts.exported, plan, find_method)
    names = [str(name) for name in facts.exported.graph_signature.user_inputs]
    given = dict(zip(names, inputs, strict=True))
    checked = Checked(facts, plan, applied, find_method)
    verdicts: list[Verdict] = list(validate(checked, [given]))
    assert {"structure", "identity", "selection", "oracle"} <= {v.gate for v in verdicts}
    return [f"{v.gate}: {v.message}" for v in verdicts if not v.passed]
