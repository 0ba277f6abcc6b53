"""Oracle: what a plan must compute, found without removing a single row.

Translation validation of token selection.  The original graph runs at full length in fp32; at each
site the oracle scores with taps of its own run, chooses, and marks the dropped rows NaN.  Operators
per row carry the marks along, movements take them to where the rows would go, and operators across
rows leave them out (``semantics/``).  What is not NaN in the end is what the shortened program must
give.  Nothing is shared with the rewriter but the analysis and the method's score.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export.graph_signature import OutputKind, TensorArgument

from tokopt.ir.binding import bind
from tokopt.ir.errors import GateError, InputError, InternalError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.ir.precision import full_precision, with_full_inputs
from tokopt.passes.methods.method import Method
from tokopt.passes.oracle.dead import Marked
from tokopt.passes.oracle.interpreter import MaskedInterpreter
from tokopt.passes.oracle.placed import Choice, place_stages
from tokopt.passes.oracle.reusing import Reusing, states_of
from tokopt.passes.oracle.rewriting import Rewriting
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.oracle.stages import Stages
from tokopt.passes.placed import places_of
from tokopt.passes.reused import reused_of
from tokopt.passes.rewriting import asked_rewrites


@dataclass(frozen=True)
class OracleResult:
    """What the oracle found.

    ``outputs``: by the output's name in the program's order, full length, NaN at dropped rows (an
    output of a dtype without NaN comes as float64 where it has such rows).  ``stages``: each
    stage's choice over the ``N`` rows its stream has in the original, in plan order; behind them
    those of layers that compute few rows anew.
    """

    outputs: dict[str, Tensor]
    stages: tuple[Choice, ...]

    @property
    def alive(self) -> tuple[Tensor, ...]:
        """Per stage, the rows left behind it: bool ``[B, N]``."""
        return tuple(choice.alive for choice in self.stages)

    @property
    def scores(self) -> tuple[Tensor, ...]:
        """Per stage, what it chose by: fp32 ``[B, N]``, NaN at rows that were dead before."""
        return tuple(choice.scores for choice in self.stages)


def run_oracle(
    facts: Facts,
    plan: Plan,
    inputs: Mapping[str, Tensor],
    methods: Callable[[str], Method],
    forced: Sequence[Tensor] | None = None,
    tie: float = 0.0,
) -> OracleResult:
    """Run a plan's masked oracle on the normalised program of ``facts``.

    ``inputs`` are the user inputs by name, and what stages remember of the call before; what they
    remember of this one is among the outputs.  ``forced``: per stage the rows to leave alive, bool
    ``[B, N]``, instead of the oracle's own choice; scores are then those along the forced way,
    and greedy choices follow it where their gains are nearer than ``tie`` (see ``Taps.followed``).
    Raises ``InputError`` (inputs), ``GateError`` (the original itself computes NaN) and
    ``UnsupportedError`` naming the operator through which dropped rows cannot be followed.
    """
    placed = place_stages(facts, plan, methods)
    reused = reused_of(facts, plan)
    kept = {name for p in placed for name in p.remembers} | states_of(reused)
    state = {name: inputs[name] for name in kept if name in inputs}
    inputs = {name: value for name, value in inputs.items() if name not in kept}
    values = with_full_inputs(facts.exported, bind(facts.exported, inputs))
    masks: set[fx.Node] = set().union(*(p.original for p in placed))
    plain = MaskedInterpreter(facts, {}, masks)
    _refuse_nan(_outputs(facts, plain.execute(values)), inputs)
    sizes = Sizes(facts.exported, values)
    reach = {p.site.name: facts.reach(p.site) for p in placed}
    where = places_of(facts, plan, methods)
    layers = 0 if reused is None else len(reused.layers)
    first, others = _parted(forced, len(placed), layers)
    given = (sizes, plan.seed, first, tie, reach, plain.seen, where, state)
    stages = Stages(placed, facts.dims, *given)
    rewriting = Rewriting(asked_rewrites(facts, plan), facts.dims, sizes)
    reusing = None if reused is None else Reusing(reused, facts.dims, sizes, state, others)
    watched = stages.watched | rewriting.watched | (reusing.watched if reusing else set())
    around = {**stages.standing.around, **rewriting.around, **(reusing.around if reusing else {})}
    marking = MaskedInterpreter(facts, stages.visits, watched, around=around)
    rewriting.seen = marking.seen
    if reusing is not None:
        reusing.seen = marking.seen
    stages.seen, stages.peek = ChainMap(rewriting.own, marking.seen), marking.peek
    outputs = _outputs(facts, marking.execute(values))
    if len(stages.choices) != len(plan.stages):
        raise InternalError("a stage's site was never reached")
    choices = tuple(stages.choices[index] for index in range(len(plan.stages)))
    for p in placed:
        outputs.update({f"{name}_next": stages.kept[name] for name in p.remembers})
    if reusing is not None:
        outputs |= reusing.remembered
        choices += reusing.choices
    return OracleResult(outputs, choices)


def run_masked(facts: Facts, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a normalised program on inputs of full length whose dropped rows are NaN.

    Returns the outputs by name, NaN at what would not be there.  Raises ``InputError`` (inputs)
    and ``UnsupportedError`` naming the operator through which dropped rows cannot be followed.
    """
    values = with_full_inputs(facts.exported, bind(facts.exported, inputs))
    return _outputs(facts, MaskedInterpreter(facts, {}, set(), dropped=True).execute(values))


def _parted(
    forced: Sequence[Tensor] | None, stages: int, layers: int
) -> tuple[Sequence[Tensor] | None, Sequence[Tensor] | None]:
    """Return the choices of the stages and those of layers that compute few rows anew."""
    if forced is None:
        return None, None
    at = len(forced) - layers if layers else len(forced)
    if layers and at != stages:
        raise InputError(f"{len(forced)} forced choices for {stages} stages and {layers} layers")
    return forced[:at], forced[at:]


def _outputs(facts: Facts, computed: list[object]) -> dict[str, Tensor]:
    results = full_precision(computed)
    specs = facts.exported.graph_signature.output_specs
    return {
        spec.arg.name: _shown(value)
        for spec, value in zip(specs, results, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    }


def _shown(value: Tensor | Marked) -> Tensor:
    if isinstance(value, Marked):
        return value.tensor.double().masked_fill(value.dead, torch.nan)
    return value


def _refuse_nan(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
    """Refuse a run whose outputs are NaN without any stage: NaN is the oracle's mark."""
    bad = next((name for name, value in outputs.items() if bool(value.isnan().any())), None)
    if bad is None:
        return
    culprit = next((name for name, value in inputs.items() if bool(value.isnan().any())), None)
    if culprit is not None:
        raise InputError(
            f"input {culprit!r} has NaN in it", expected="finite inputs to verify the plan on"
        )
    raise GateError(
        f"the original program computes NaN in output {bad!r} on these inputs, without any stage",
        expected="inputs on which the original gives numbers",
        hint="verify on other inputs (--inputs)",
    )
