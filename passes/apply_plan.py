"""Apply a plan: every stage in the order data passes them, holes dropped at the merge, the trace.

Tower stages first (they share one drop at the merge boundary), then the stages of the sequence the
tower is merged into.  The result is a valid program with the same inputs and outputs, and the
selection trace as further outputs named ``trace.<stage>.kept`` and ``trace.<stage>.scores``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.drop import drop_holes, visual_mask
from tokopt.passes.methods.method import Method
from tokopt.passes.scoring import StackState
from tokopt.passes.series import Series
from tokopt.passes.stage import Inserted, insert_stage, refuse_barrier
from tokopt.passes.workspace import Workspace, rebuilt

TRACE = "trace"


@dataclass(frozen=True)
class Applied:
    """A rewritten program; ``trace`` names its trace outputs, ``(kept, scores)`` per stage."""

    exported: ExportedProgram
    trace: tuple[tuple[str, str], ...]


def apply_plan(exported: ExportedProgram, plan: Plan, methods: Callable[[str], Method]) -> Applied:
    """Return a normalised program with the plan's stages inserted; the argument is untouched.

    Raises ``InputError`` for unknown sites and methods, ``UnsupportedError`` for illegal stages.
    """
    work = Workspace.of(exported)
    members = _in_data_order(work.facts, plan, methods)
    inserted: dict[int, Inserted] = {}
    dropped: dict[str, int] = {}
    for stack, stages in members:
        kept = dropped.get(stack.role)
        if not stages and kept is None:
            continue
        series = Series(work, plan.outputs)
        values = [site.value for _, _, site in stages]
        if kept is not None and stack.merge is not None:
            values.insert(0, stack.merge.node)
        series.plan(values, stack, [site for _, _, site in stages])
        state = _initial(work, stack, [site for _, _, site in stages])
        if kept is not None and stack.merge is not None:
            series.make(drop_holes(work, stack, state, stack.merge, kept))
        for position, stage, site in stages:
            method = methods(stage.method)
            trace, cut = insert_stage(work, stack, site, stage, method, state, plan.seed)
            inserted[position] = trace
            series.make(cut)
        if stack.merge is None:
            dropped |= _fed(work.facts, stack, state.visual)
    return _finished(work, [inserted[i] for i in range(len(plan.stages))])


def _in_data_order(
    facts: Facts, plan: Plan, methods: Callable[[str], Method]
) -> list[tuple[TokenStack, list[tuple[int, Stage, Site]]]]:
    """Group stages by stack, towers first, by depth inside a stack; refuse what cannot be."""
    grouped: dict[str, list[tuple[int, Stage, Site]]] = {s.role: [] for s in facts.stacks}
    for position, stage in enumerate(plan.stages):
        stack, site = facts.find_site(stage.site)
        role, roles = stack.role.rstrip("0123456789"), methods(stage.method).roles
        if role not in roles:
            raise InputError(
                f"{stage.method} cannot be placed at {stage.site}",
                expected="a stack of role " + " or ".join(sorted(roles)),
            )
        refuse_barrier(stack, site)
        grouped[stack.role].append((position, stage, site))
    for members in grouped.values():
        members.sort(key=lambda member: member[2].depth)
        for (_, a, x), (_, b, y) in itertools.pairwise(members):
            if x.depth == y.depth:
                raise InputError(f"two stages at one site: {a.site} and {b.site}")
            if x.unit != y.unit:
                raise UnsupportedError(
                    f"rows leave in groups of {x.group} at {a.site} and of {y.group} at {b.site}",
                    expected="stages of one stack at sites with the same groups",
                )
    order = sorted(facts.stacks, key=lambda s: s.merge is not None)
    return [(stack, grouped[stack.role]) for stack in order]


def _initial(work: Workspace, stack: TokenStack, sites: list[Site]) -> StackState:
    if not isinstance(stack.count, int):
        raise UnsupportedError(
            "the number of visual tokens is symbolic",
            hint="export with a constant image size and one image per prompt",
        )
    if stack.merge is None:
        return StackState(rows=stack.count // sites[0].run, visual=stack.count)
    with work.after(stack.merge.node):
        rows = work.size(stack.merge.node, stack.stack.dim)
        mask = visual_mask(work, stack, stack.merge)
    return StackState(rows=rows, visual=stack.count, mask=mask)


def _fed(facts: Facts, tower: TokenStack, visual: int) -> dict[str, int]:
    """Return, for each stack the tower's rows are merged into, how many of them stay there."""
    fed = {}
    for stack in facts.stacks:
        merge = stack.merge
        if merge is not None and facts.dependence.reaches(tower.stack.end, merge.source):
            assert isinstance(merge.count, int) and isinstance(tower.count, int)
            fed[stack.role] = visual * merge.count // tower.count
    return fed


def _finished(work: Workspace, inserted: list[Inserted]) -> Applied:
    """Add the trace outputs and make the program whole again."""
    (output,) = work.graph.find_nodes(op="output")
    names: list[tuple[str, str]] = []
    traced: list[fx.Node] = []
    for position, stage in enumerate(inserted):
        pair = (f"{TRACE}_{position}_kept", f"{TRACE}_{position}_scores")
        with work.graph.inserting_before(output):
            for name, node in zip(pair, (stage.kept, stage.scores), strict=True):
                alias = work.call(torch.ops.aten.clone.default, node)
                alias.name = name
                traced.append(alias)
        names.append(pair)
    output.args = ((*output.args[0], *traced),)
    output.meta.pop("val", None)
    signature = copy.deepcopy(work.exported.graph_signature)
    for node in traced:
        spec = OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
        signature.output_specs.append(spec)
    work.exported._graph_signature = signature
    exported = rebuilt(work.exported, work.module)
    _extend_out_spec(exported, len(traced))
    return Applied(exported, tuple(names))


def _extend_out_spec(exported: ExportedProgram, count: int) -> None:
    """Give the calling convention the trace: ``(original outputs, (trace, …))``."""
    entry = exported.module_call_graph[0]
    if not count or entry.signature is None:
        return
    entry = copy.copy(entry)
    entry.signature = copy.copy(entry.signature)
    signature: Any = entry.signature
    original = pytree.tree_unflatten([0] * signature.out_spec.num_leaves, signature.out_spec)
    signature.out_spec = pytree.tree_structure((original, (0,) * count))
    exported._module_call_graph = [entry, *exported.module_call_graph[1:]]
