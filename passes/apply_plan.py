"""Apply a plan: every stage in the order data passes them, holes dropped at the merge, the trace.

Tower stages first (they share one drop at the merge boundary), then the stages of the sequence the
tower is merged into.  The result is a valid program with the same inputs and outputs, and the
selection trace as further outputs named ``trace.<stage>.kept`` and ``trace.<stage>.scores``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from tokopt.ir.arrival import Arrival
from tokopt.ir.collector import uncollected
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.memory import Memory
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.rebuilt import rebuilt
from tokopt.ir.sites import Site
from tokopt.passes.block_tap import blocks_of_plan
from tokopt.passes.drop import drop_holes, visual_mask
from tokopt.passes.methods.asked import check_options
from tokopt.passes.methods.method import Method
from tokopt.passes.placed import places_of
from tokopt.passes.series import Series
from tokopt.passes.stack_state import StackState
from tokopt.passes.stage import Inserted, enter_stack, insert_stage, refuse_barrier
from tokopt.passes.tower_tap import feeders_of
from tokopt.passes.workspace import Workspace

TRACE = "trace"


@dataclass(frozen=True)
class Applied:
    """A rewritten program; ``trace`` names its trace outputs, ``(kept, scores)`` per stage.

    ``inserted`` names the calls that each stage added: scores, choice, the gathers of the cut.
    ``memory``: the inputs and outputs by which stages keep something for the next call.
    """

    exported: ExportedProgram
    trace: tuple[tuple[str, str], ...]
    inserted: tuple[frozenset[str], ...] = ()
    memory: tuple[Memory, ...] = ()


@uncollected
def apply_plan(exported: ExportedProgram, plan: Plan, methods: Callable[[str], Method]) -> Applied:
    """Return a normalised program with the plan's stages inserted; the argument is untouched.

    Raises ``InputError`` for unknown sites and methods, ``UnsupportedError`` for illegal stages.
    """
    work = Workspace.of(exported)
    inserted: dict[int, Inserted] = {}
    added: dict[int, frozenset[str]] = {}
    dropped: dict[str, int] = {}
    feeding: dict[str, int] = {}
    known: set[str] = set()
    _since(work, known)
    runs = _runs(work.facts, plan, methods)
    fed = {id(run): _fed(work.facts, run) for run in runs}
    sites = [site for run in runs for _, members in run for _, _, site in members]
    reach = {site.name: work.facts.reach(site) for site in sites}
    places = places_of(work.facts, plan, methods)
    feeders = feeders_of(work.facts, plan, methods)
    blocks = blocks_of_plan(work.facts, plan, methods)
    for run in runs:
        _refuse_mixed_units(fed[id(run)], runs)
        head = run[0][0]
        kept, boundary = dropped.get(head.role), head.boundary
        stages = [(stack, *member) for stack, members in run for member in members]
        if not stages and kept is None:
            continue
        series = Series(work, plan.outputs)
        values = [site.value for _, _, _, site in stages]
        if kept is not None and boundary is not None:
            values.insert(0, boundary)
        series.plan(values, head, [site for _, _, _, site in stages])
        state = _initial(work, head, [site for _, _, _, site in stages])
        state.reach, state.places, state.feeders, state.blocks = reach, places, feeders, blocks
        if kept is not None and boundary is not None:
            series.make(drop_holes(work, head, state, boundary, kept))
            added[feeding[head.role]] |= _since(work, known)
        current = head
        for stack, position, stage, site in stages:
            if stack is not current:
                enter_stack(work, current, stack, state)
                current = stack
            method, now = methods(stage.method), series.behind(site)
            state.entry = series.behind(stack.sites[0]).value
            trace, cut = insert_stage(work, stack, now, stage, method, state, plan.seed, position)
            inserted[position] = trace
            series.make(cut)
            added[position] = _since(work, known)
        for role, arrival in fed[id(run)].items():
            if arrival.holes:
                dropped[role] = arrival.rows(state.visual // stages[-1][3].group)
                feeding[role] = stages[-1][1]
    every = range(len(plan.stages))
    return _finished(work, [inserted[i] for i in every], [added[i] for i in every])


def _since(work: Workspace, known: set[str]) -> frozenset[str]:
    """Return the names of calls that are new, and remember them."""
    new = frozenset(node.name for node in work.graph.nodes) - known
    known |= new
    return new


Members = list[tuple[int, Stage, Site]]
Run = list[tuple[TokenStack, Members]]


def _runs(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> list[Run]:
    """Group stacks by the token axis they share (a tower, and who reads it by cross-attention)."""
    runs: list[Run] = []
    for stack, members in _in_data_order(facts, plan, methods):
        home = next((run for run in runs if run[0][0].tokens.root is stack.tokens.root), None)
        if home is None:
            runs.append(home := [])
        home.append((stack, members))
    for run in runs:
        sites = [site for _, members in run for _, _, site in members]
        for a, b in itertools.pairwise(sites):
            if a.unit != b.unit:
                raise UnsupportedError(
                    f"rows leave in groups of {a.group} at {a.name} and of {b.group} at {b.name}",
                    expected="stages along one token axis at sites with the same groups",
                )
    return runs


def _in_data_order(
    facts: Facts, plan: Plan, methods: Callable[[str], Method]
) -> list[tuple[TokenStack, Members]]:
    """Group stages by stack, towers first, by depth inside a stack; refuse what cannot be."""
    grouped: dict[str, Members] = {s.role: [] for s in facts.stacks}
    for position, stage in enumerate(plan.stages):
        stack, site = facts.find_site(stage.site)
        method = methods(stage.method)
        role, roles = stack.role.rstrip("0123456789"), method.roles
        check_options(method, stage.options)
        if role not in roles:
            raise InputError(
                f"{stage.method} cannot be placed at {stage.site}",
                expected="a stack of role " + " or ".join(sorted(roles)),
            )
        refuse_barrier(stack, site)
        _refuse_none(stack, stage, method)
        grouped[stack.role].append((position, stage, site))
    for members in grouped.values():
        members.sort(key=lambda member: member[2].depth)
        for (_, a, x), (_, b, y) in itertools.pairwise(members):
            if x.depth == y.depth:
                raise InputError(f"two stages at one site: {a.site} and {b.site}")
    order = sorted(facts.stacks, key=lambda s: s.merge is not None)
    return [(stack, grouped[stack.role]) for stack in order]


def _refuse_none(stack: TokenStack, stage: Stage, method: Method) -> None:
    """Refuse a stage that leaves no visual row where something must be left, or is not made for it.

    In a decoder the text is left.
    """
    none = stage.keep == 0 and method.empties and stack.merge is not None
    if stage.keep < 1 and not none:
        raise InputError(
            f"keep = {stage.keep} at {stage.site}, by {stage.method}",
            expected="at least 1 token" + (" in a tower" if method.empties else ""),
            hint="todre can take all visual rows out of a decoder",
        )


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
        mask = visual_mask(work, stack, stack.merge)
    return StackState(rows=rows, visual=stack.count, mask=mask, written=mask)


def _fed(facts: Facts, run: Run) -> dict[str, Arrival]:
    """Return how the units that the stages of a run leave arrive in other stacks, by role."""
    sites = [site for _, members in run for _, _, site in members]
    fed: dict[str, Arrival] = {}
    for stack in facts.stacks if sites else ():
        if stack.tokens.root is not run[0][0].tokens.root:
            found = facts.arrival(sites[-1], stack)
            if found is not None:
                fed[stack.role] = found
    return fed


def _refuse_mixed_units(fed: Mapping[str, Arrival], runs: list[Run]) -> None:
    """Refuse stages in a stack that other stages have shortened by units of another axis."""
    for run in runs:
        for stack, members in run:
            if members and stack.role in fed and not fed[stack.role].holes:
                raise UnsupportedError(
                    f"a stage at {members[0][2].name} cannot follow one in the tower: rows leave "
                    "there in other units",
                    expected="stages in the tower or in the decoder, not in both",
                )


def _finished(work: Workspace, inserted: list[Inserted], added: list[frozenset[str]]) -> Applied:
    """Add the trace outputs and make the program whole again."""
    (output,) = work.graph.find_nodes(op="output")
    names: list[tuple[str, str]] = []
    traced: list[fx.Node] = []
    memory: list[Memory] = []
    for position, stage in enumerate(inserted):
        pair = (f"{TRACE}_{position}_kept", f"{TRACE}_{position}_scores")
        with work.graph.inserting_before(output):
            for name, node in zip(pair, (stage.kept, stage.scores), strict=True):
                alias = work.call(torch.ops.aten.clone.default, node)
                alias.name = name
                traced.append(alias)
        names.append(pair)
    for name, (shape, value) in (pair for one in inserted for pair in one.memory.items()):
        with work.graph.inserting_before(output):
            alias = work.call(torch.ops.aten.clone.default, value)
        alias.name = f"{name}_next"
        traced.append(alias)
        memory.append(Memory(name, alias.name, shape))
    output.args = ((*output.args[0], *traced),)
    output.meta.pop("val", None)
    signature = copy.deepcopy(work.exported.graph_signature)
    for node in traced:
        spec = OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
        signature.output_specs.append(spec)
    work.exported._graph_signature = signature
    exported = rebuilt(work.exported, work.graph)
    _extend_specs(exported, len(traced), [one.input for one in memory])
    return Applied(exported, tuple(names), tuple(added), tuple(memory))


def _extend_specs(exported: ExportedProgram, count: int, inputs: list[str]) -> None:
    """Give the calling convention the trace: ``(original outputs, (trace, …))``, and inputs."""
    entry = exported.module_call_graph[0]
    if not count or entry.signature is None:
        return
    entry = copy.copy(entry)
    entry.signature = copy.copy(entry.signature)
    signature: Any = entry.signature
    original = pytree.tree_unflatten([0] * signature.out_spec.num_leaves, signature.out_spec)
    signature.out_spec = pytree.tree_structure((original, (0,) * count))
    if inputs:
        leaves = [0] * signature.in_spec.num_leaves
        args, kwargs = pytree.tree_unflatten(leaves, signature.in_spec)
        signature.in_spec = pytree.tree_structure((args, {**kwargs, **dict.fromkeys(inputs, 0)}))
        exported._example_inputs = None
        if signature.forward_arg_names is not None:
            signature.forward_arg_names = [*signature.forward_arg_names, *inputs]
    exported._module_call_graph = [entry, *exported.module_call_graph[1:]]
