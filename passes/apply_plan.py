"""Apply a plan: every stage in the order data passes them, holes dropped at the merge, the trace.

Tower stages first (they share one drop at the merge boundary), then the stages of the sequence the
tower is merged into.  The result is a valid program with the same inputs and outputs, and the
selection trace as further outputs named ``trace.<stage>.kept`` and ``trace.<stage>.scores``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from tokopt.ir.collector import uncollected
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.memory import Memory
from tokopt.ir.new_inputs import call_with
from tokopt.ir.plan import Plan
from tokopt.ir.rebuilt import rebuilt
from tokopt.ir.sites import Site
from tokopt.passes.block_tap import blocks_of_plan
from tokopt.passes.drop import but_the_last, drop_holes, visual_mask
from tokopt.passes.methods.method import Method
from tokopt.passes.picked import picked_of_plan
from tokopt.passes.placed import places_of
from tokopt.passes.quotas import images_of
from tokopt.passes.reused import reused_of, reuses
from tokopt.passes.reusing import Remembered, insert_reuse
from tokopt.passes.rewriting import asked_rewrites, rewrite_layers
from tokopt.passes.runs import (
    arriving_of,
    come_back,
    plan_runs,
    refuse_beside,
    refuse_mixed_units,
)
from tokopt.passes.series import Series
from tokopt.passes.slow_path import insert_slow_path
from tokopt.passes.stack_state import StackState
from tokopt.passes.stage import Inserted, enter_stack, insert_stage
from tokopt.passes.tower_tap import feeders_of
from tokopt.passes.weighing import weigh_layers
from tokopt.passes.workspace import Workspace

TRACE = "trace"


@dataclass(frozen=True)
class Applied:
    """A rewritten program; ``trace`` names its trace outputs, ``(kept, scores)`` per stage.

    ``inserted`` names the calls that each stage added: scores, choice, the gathers of the cut.
    ``memory``: the inputs and outputs by which something is kept for the next call, ``renewed`` the
    names of those outputs that this program has; where the plan reuses rows, the trace goes on with
    the layers that do, ``reusing`` names the calls added for that, and ``reference`` is the program
    that computes all rows, once in ``every`` calls.
    """

    exported: ExportedProgram
    trace: tuple[tuple[str, str], ...]
    inserted: tuple[frozenset[str], ...] = ()
    memory: tuple[Memory, ...] = ()
    renewed: tuple[str, ...] = ()
    reusing: frozenset[str] = frozenset()
    every: int = 1
    reference: Applied | None = None


@uncollected
def apply_plan(exported: ExportedProgram, plan: Plan, methods: Callable[[str], Method]) -> Applied:
    """Return a normalised program with the plan's stages inserted; the argument is untouched.

    Raises ``InputError`` for unknown sites and methods, ``UnsupportedError`` for illegal stages.
    """
    applied = _applied(exported, plan, methods, reference=False)
    if not reuses(plan):
        return applied
    return replace(applied, reference=_applied(exported, plan, methods, reference=True))


def _applied(
    exported: ExportedProgram, plan: Plan, methods: Callable[[str], Method], reference: bool
) -> Applied:
    work = Workspace.of(exported)
    inserted: dict[int, Inserted] = {}
    added: dict[int, frozenset[str]] = {}
    dropped: dict[str, int] = {}
    feeding: dict[str, int] = {}
    known: set[str] = set()
    _since(work, known)
    runs = plan_runs(work.facts, plan, methods)
    fed = {id(run): {} if come_back(run) else arriving_of(work.facts, run) for run in runs}
    sites = [site for run in runs for _, members in run for _, _, site in members]
    reach = {site.name: work.facts.reach(site) for site in sites}
    places = places_of(work.facts, plan, methods)
    feeders = feeders_of(work.facts, plan, methods)
    blocks = blocks_of_plan(work.facts, plan, methods)
    asked = asked_rewrites(work.facts, plan)
    images, picked = images_of(work.facts, plan), picked_of_plan(work.facts, plan, methods)
    reused = reused_of(work.facts, plan)
    remembered = None if reused is None else insert_reuse(work, reused, reference)
    for_reuse = _since(work, known)
    for run in runs:
        refuse_mixed_units(fed[id(run)], runs)
        head = run[0][0]
        kept, boundary = dropped.get(head.role), head.boundary
        stages = [(stack, *member) for stack, members in run for member in members]
        if not stages and kept is None and all(one.stack is not head for one in asked):
            continue
        if come_back(run):
            refuse_beside(stages, shortened=kept is not None)
            ((_, position, stage, site),) = stages
            state = _initial(work, head, [site])
            state.reach, state.places, state.entry = reach, places, head.sites[0].value
            method = methods(stage.method)
            inserted[position] = insert_slow_path(
                work, head, site, stage, method, state, plan.seed, position
            )
            added[position] = _since(work, known)
            continue
        series = Series(work, plan.outputs)
        values = [site.value for _, _, _, site in stages]
        if kept is not None and boundary is not None:
            values.insert(0, boundary)
        series.plan(values, head, [site for _, _, _, site in stages])
        state = _initial(work, head, [site for _, _, _, site in stages])
        state.reach, state.places, state.feeders, state.blocks = reach, places, feeders, blocks
        state.images, state.picked = images, picked
        if kept is not None and boundary is not None:
            series.make(drop_holes(work, head, state, boundary, kept))
            added[feeding[head.role]] |= _since(work, known)
        current = head
        first = min((site.depth for stack, _, _, site in stages if stack is head), default=None)
        before = range(len(head.stack.layers) if first is None else first)
        rewrite_layers(work, asked, head, before, state, series.behind)
        _since(work, known)
        for stack, position, stage, site in stages:
            if stack is not current:
                enter_stack(work, current, stack, state)
                current = stack
            method, now = methods(stage.method), series.behind(site)
            state.entry = series.behind(stack.sites[0]).value
            trace, cut = insert_stage(work, stack, now, stage, method, state, plan.seed, position)
            inserted[position] = trace
            series.make(cut)
            later = (s.depth for other, _, _, s in stages if other is stack)
            end = min((d for d in later if d > site.depth), default=len(stack.stack.layers))
            layers = range(site.depth, end)
            if state.sizes is not None:
                weigh_layers(work, stack, layers, cut.lead, state.sizes)
            added[position] = _since(work, known)
            rewrite_layers(work, asked, stack, layers, state, series.behind)
            _since(work, known)  # no stage's work
        for role, arrival in fed[id(run)].items():
            if arrival.holes:
                dropped[role] = arrival.rows(state.visual // stages[-1][3].group)
                feeding[role] = stages[-1][1]
    every = range(len(plan.stages))
    calls = [added[i] for i in every]
    done = _finished(work, [inserted[i] for i in every], calls, remembered)
    return done if reused is None else replace(done, reusing=for_reuse, every=reused.every)


def _since(work: Workspace, known: set[str]) -> frozenset[str]:
    """Return the names of calls that are new, and remember them."""
    new = frozenset(node.name for node in work.graph.nodes) - known
    known |= new
    return new


def _initial(work: Workspace, stack: TokenStack, sites: list[Site]) -> StackState:
    if not isinstance(stack.count, int):
        raise UnsupportedError(
            "the number of visual tokens is symbolic",
            hint="export with a constant image size and one image per prompt",
        )
    if stack.merge is None:
        run = sites[0].run if sites else 1
        return StackState(rows=stack.count // run, visual=stack.count)
    with work.after(stack.merge.node):
        rows = work.size(stack.merge.node, stack.stack.dim)
        written = visual_mask(work, stack, stack.merge)
        mask = but_the_last(work, written)
    return StackState(rows=rows, visual=stack.count, mask=mask, written=written)


def _finished(
    work: Workspace,
    inserted: list[Inserted],
    added: list[frozenset[str]],
    remembered: Remembered | None,
) -> Applied:
    """Add the trace outputs and make the program whole again."""
    (output,) = work.graph.find_nodes(op="output")
    names: list[tuple[str, str]] = []
    traced: list[fx.Node] = []
    memory: list[Memory] = []
    renewed: list[str] = []

    def give(name: str, node: fx.Node) -> None:
        with work.graph.inserting_before(output):
            alias = work.call(torch.ops.aten.clone.default, node)
        alias.name = name
        traced.append(alias)

    remembered = remembered or Remembered()
    for position, stage in enumerate([*inserted, *remembered.choices]):
        pair = (f"{TRACE}_{position}_kept", f"{TRACE}_{position}_scores")
        for name, node in zip(pair, (stage.kept, stage.scores), strict=True):
            give(name, node)
        names.append(pair)
    for name, (shape, value) in (pair for one in inserted for pair in one.memory.items()):
        memory.append(Memory(name, f"{name}_next", shape))
        renewed.append(memory[-1].output)
        give(renewed[-1], value)
    for name, shape in remembered.shapes.items():
        memory.append(Memory(name, f"{name}_next", shape))
        if name in remembered.given:
            renewed.append(memory[-1].output)
            give(renewed[-1], remembered.given[name])
    taken = {node.name for node in work.graph.find_nodes(op="placeholder")}
    inputs = [one.input for one in memory if one.input in taken]
    exported = with_outputs(work.exported, work.graph, traced, inputs)
    whole = (tuple(names), tuple(added), tuple(memory), tuple(renewed))
    return Applied(exported, *whole)


def with_outputs(
    draft: ExportedProgram, graph: fx.Graph, further: Sequence[fx.Node], inputs: Sequence[str] = ()
) -> ExportedProgram:
    """Return a draft with the graph whole again, ``further`` nodes behind its outputs.

    ``inputs`` are names of inputs that the graph has and the calling convention does not yet.
    """
    (output,) = graph.find_nodes(op="output")
    output.args = ((*output.args[0], *further),)
    output.meta.pop("val", None)
    signature = copy.deepcopy(draft.graph_signature)
    for node in further:
        spec = OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
        signature.output_specs.append(spec)
    draft._graph_signature = signature
    exported = rebuilt(draft, graph)
    _extend_specs(exported, len(further), inputs)
    return exported


def _extend_specs(exported: ExportedProgram, count: int, inputs: Sequence[str]) -> None:
    """Give the calling convention the trace: ``(original outputs, (trace, …))``, and inputs."""
    entry = exported.module_call_graph[0]
    if not count or entry.signature is None:
        return
    entry = copy.copy(entry)
    entry.signature = copy.copy(entry.signature)
    signature: Any = entry.signature
    original = pytree.tree_unflatten([0] * signature.out_spec.num_leaves, signature.out_spec)
    signature.out_spec = pytree.tree_structure((original, (0,) * count))
    exported._module_call_graph = [entry, *exported.module_call_graph[1:]]
    call_with(exported, inputs)
