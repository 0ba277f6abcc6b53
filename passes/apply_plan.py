"""Apply a plan: every stage in the order data passes them, holes dropped at the merge, the trace.

Tower stages first (they share one drop at the merge boundary), then the stages of the sequence the
tower is merged into.  The result is a valid program with the same inputs and outputs, and the
selection trace as further outputs named ``trace.<stage>.kept`` and ``trace.<stage>.scores``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, Site, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.drop import drop_holes, visual_mask
from tokopt.passes.methods.method import Method
from tokopt.passes.stage import Inserted, StackState, insert_stage
from tokopt.passes.workspace import Workspace

TRACE = "trace"


@dataclass(frozen=True)
class Applied:
    """A rewritten program; ``trace`` names its trace outputs, ``(kept, scores)`` per stage."""

    exported: ExportedProgram
    trace: tuple[tuple[str, str], ...]


def apply_plan(
    exported: ExportedProgram, plan: Plan, methods: Callable[[str], Method]
) -> Applied:
    """Return a normalised program with the plan's stages inserted; the argument is untouched.

    Raises ``InputError`` for unknown sites and methods, ``UnsupportedError`` for illegal stages.
    """
    work = Workspace.of(exported)
    facts = work.facts
    states: dict[str, StackState] = {}
    inserted: list[Inserted] = [None] * len(plan.stages)  # type: ignore[list-item]
    for stack, members in _in_data_order(facts, plan):
        state = states.setdefault(stack.role, _initial(work, stack, bool(members), states, facts))
        for position, stage, site in members:
            method = methods(stage.method)
            if stack.role.rstrip("0123456789") not in method.roles:
                raise InputError(
                    f"{stage.method} cannot be placed at {stage.site}",
                    expected="a stack of role " + " or ".join(sorted(method.roles)),
                )
            inserted[position] = insert_stage(
                work, stack, site, stage, method, state, plan.outputs, plan.seed, None
            )
        if members and stack.merge is None:
            _after_tower(work, stack, state, states, plan)
    return _finished(work, inserted)


def _in_data_order(
    facts: Facts, plan: Plan
) -> list[tuple[TokenStack, list[tuple[int, Stage, Site]]]]:
    grouped: dict[str, list[tuple[int, Stage, Site]]] = {s.role: [] for s in facts.stacks}
    for position, stage in enumerate(plan.stages):
        stack, site = facts.find_site(stage.site)
        grouped[stack.role].append((position, stage, site))
    for members in grouped.values():
        members.sort(key=lambda member: member[2].depth)
        for (_, a, x), (_, b, y) in zip(members, members[1:], strict=False):
            if x.depth == y.depth:
                raise InputError(f"two stages at one site: {a.site} and {b.site}")
    order = sorted(facts.stacks, key=lambda s: s.merge is not None)
    return [(stack, grouped[stack.role]) for stack in order]


def _initial(
    work: Workspace,
    stack: TokenStack,
    used: bool,
    states: dict[str, StackState],
    facts: Facts,
) -> StackState:
    site = stack.sites[0]
    tokens = next((s for s in stack.sites if s.legal), site).tokens
    if stack.merge is None:
        if not isinstance(stack.count, int):
            raise UnsupportedError("the number of visual tokens is symbolic")
        group = next((s for s in stack.sites if s.legal), site).group
        return StackState(rows=stack.count // group, visual=stack.count)
    with work.graph.inserting_before(stack.merge.node.next):
        value = stack.merge.node
        rows = work.size(value, stack.stack.dim)
        mask = visual_mask(work, stack, stack.merge) if used else None
    del tokens
    if not isinstance(stack.merge.count, int):
        raise UnsupportedError("the number of visual tokens per prompt is symbolic")
    return StackState(rows=rows, visual=stack.merge.count, mask=mask)


def _after_tower(
    work: Workspace,
    tower: TokenStack,
    state: StackState,
    states: dict[str, StackState],
    plan: Plan,
) -> None:
    """Drop the tower's holes from the sequence it feeds, if it feeds one."""
    for stack in work.facts.stacks:
        merge = stack.merge
        if merge is None or not work.facts.dependence.reaches(tower.stack.end, merge.node):
            continue
        fed = states.setdefault(stack.role, _initial(work, stack, True, states, work.facts))
        if fed.mask is None:
            with work.graph.inserting_before(merge.node.next):
                fed.mask = visual_mask(work, stack, merge)
        assert isinstance(merge.count, int) and isinstance(tower.count, int)
        kept = state.visual * merge.count // tower.count
        drop_holes(work, stack, fed, merge, kept, plan.outputs)


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
    work.graph.lint()
    work.module.recompile()
    signature = copy.deepcopy(work.exported.graph_signature)
    for spec, node in zip(signature.output_specs, output.args[0], strict=False):
        if isinstance(spec.arg, TensorArgument) and isinstance(node, fx.Node):
            spec.arg = TensorArgument(name=node.name)
    for node in traced:
        spec = OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
        signature.output_specs.append(spec)
    exported = work.exported._update(work.module, signature)
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
