"""Buffers: caches of a fixed length that are written in place become caches that grow.

Before: an input ``[B, H, L, D]`` (decode) or a blank (prefill), new rows written into it at places
that an input or a range tells, attention over all L rows with a mask, the whole of it given back.
After: what is given is the rows that are written so far, new ones concatenated behind them, and
masks are read as far as there are rows.  Sound where rows are written one behind the other from the
first place on, and the mask hides what is not written; the gate on the normal form compares with
the archive's program, with other numbers in those rows (``buffer_inputs.py``).  Everything behind
then knows of one kind of cache alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dead import remove_dead
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import describe, infer_dims
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.lengths import length_of, same_shape
from tokopt.ir.new_inputs import call_by_name, drop_inputs, new_size
from tokopt.ir.rebuilt import draft_of, rebuilt
from tokopt.ir.trace import call, compute_value, compute_values, fake_mode_of
from tokopt.passes.buffer_inputs import grown_examples
from tokopt.passes.buffer_writes import Write, find_writes
from tokopt.passes.literals import patch_literals
from tokopt.passes.spec import MADE
from tokopt.passes.workspace import Count, Workspace

aten = torch.ops.aten


def grow_all(graphs: Mapping[str, ExportedProgram]) -> dict[str, ExportedProgram]:
    """Return programs of a model, in normal form, with caches that grow, where a step writes one.

    Raises ``UnsupportedError`` where what attention reads beside a cache cannot be as long as it.
    """
    steps = (write for graph in graphs.values() for write in find_writes(graph))
    if not any(write.slot is not None for write in steps):
        return dict(graphs)  # buffers that nobody goes on with are given as they are
    return {name: grow_buffers(graph) for name, graph in graphs.items()}


def grow_buffers(exported: ExportedProgram) -> ExportedProgram:
    """Return the program with caches that grow; the same one where it writes none in place."""
    if not find_writes(exported):
        return exported
    draft = draft_of(exported)
    writes = find_writes(draft)
    examples = grown_examples(draft, writes)
    _Growing(draft, writes).run()
    made = rebuilt(draft, draft.graph)
    call_by_name(made, examples)
    archived = {node.name for node in exported.graph.nodes}
    for node in made.graph.nodes:
        if node.name not in archived:
            node.meta[MADE] = True
    return made


class _Growing:
    """The program while its caches are made to grow."""

    def __init__(self, draft: ExportedProgram, writes: Sequence[Write]) -> None:
        self.draft, self.graph, self.writes = draft, draft.graph, writes
        self.mode, self.dependence = fake_mode_of(draft.graph), Dependence(draft.graph)
        dims = infer_dims(draft)
        facts = Facts(draft, dims, self.dependence, (), ())
        self.work = Workspace(draft, facts, dict(dims.axes), self.mode)
        self.readers = {write.node: self._readers(write) for write in writes}
        self.grown: dict[fx.Node, fx.Node] = {}
        slots = {write.slot for write in writes if write.slot is not None}
        self.positions = {slot for slot in slots if self._is_position(slot)}

    def run(self) -> None:
        """Rewrite the graph and the inputs."""
        sizes = self._sizes()
        for write in self.writes:
            self.grown[write.node] = self._grow(write, sizes.get(write.node))
        for write in self.writes:
            self._shorten(write)
            write.node.replace_all_uses_with(self.grown[write.node])
        unread = {write.base.name for write in self.writes if write.slot is None}
        for slot in dict.fromkeys(w.slot for w in self.writes if w.slot is not None):  # in order
            self._place(slot)
            unread.add(slot.name)
        remove_dead(self.graph)
        inputs = {node.name: node for node in self.graph.find_nodes(op="placeholder")}
        drop_inputs(self.draft, {n for n in unread if n in inputs and not inputs[n].users})
        environment = self.mode.shape_env
        with torch.no_grad() if environment is None else environment.suppress_guards():
            compute_values(self.graph, self.mode)

    def _readers(self, write: Write) -> list[fx.Node]:
        """Return the calls that take rows of a buffer, in order, down to those that give none."""
        carrying, found, node = {write.node}, list[fx.Node](), write.node
        while node.next.op != "output":
            node = node.next
            if any(operand in carrying for operand in node.all_input_nodes):
                found.append(node)
                if self._carries(node, self._axis(write)):
                    carrying.add(node)
        return found

    def _is_position(self, slot: fx.Node) -> bool:
        """Return whether rows are computed from a place, and not only written to it or masked."""
        barred = {write.node for write in self.writes}
        barred |= {node for readers in self.readers.values() for node in readers}
        reached = self.dependence.reached([slot], barred)
        return any(write.rows in reached for write in self.writes if write.slot is slot)

    def _axis(self, write: Write) -> Axis:
        return self.work.axes[write.node][write.dim].root

    def _carries(self, node: fx.Node, rows: Axis) -> bool:
        return any(locate(axis, rows) is not None for axis in self.work.axes.get(node, ()))

    def _sizes(self) -> dict[fx.Node, torch.SymInt]:
        """Return a free size for each cache that decode is given: one for both sides of a layer."""
        found: dict[fx.Node, torch.SymInt] = {}
        ranges = dict(self.draft.range_constraints)
        steps = [write for write in self.writes if write.slot is not None]
        for write in steps:
            mine = set(self.readers[write.node])
            alike = next(
                (o.node for o in steps if o.node in found and mine & set(self.readers[o.node])),
                None,
            )
            if alike is None:
                size = new_size(self.mode, f"rows_of_{write.base.name}")
                most = int(write.node.meta["val"].shape[write.dim]) - 1
                ranges[length_of(size)] = ValueRanges(1, most)
                found[write.node] = size
            else:
                found[write.node] = found[alike]
        self.draft._range_constraints = ranges
        return found

    def _grow(self, write: Write, size: torch.SymInt | None) -> fx.Node:
        """Return what is read in a buffer's place: its rows, or those written and the new ones."""
        rows = self._whole(write)
        if size is None:
            return rows
        value = write.base.meta["val"]
        with self.mode:
            sizes = [size if d == write.dim else n for d, n in enumerate(value.shape)]
            write.base.meta["val"] = torch.empty(sizes, dtype=value.dtype, device=value.device)
        with self.graph.inserting_before(write.node):
            return call(self.graph, aten.cat.default, [write.base, rows], write.dim, mode=self.mode)

    def _whole(self, write: Write) -> fx.Node:
        """Return the rows that are written, of the buffer's dims."""
        shape, wanted = write.rows.meta["val"].shape, list(write.node.meta["val"].shape)
        if len(shape) == len(wanted) and same_shape(
            shape, [*wanted[: write.dim], shape[write.dim], *wanted[write.dim + 1 :]]
        ):
            return write.rows
        with self.graph.inserting_before(write.node):
            wanted[write.dim] = 1
            sizes = [-1 if isinstance(size, torch.SymInt) else size for size in wanted]
            return call(self.graph, aten.expand.default, write.rows, sizes, mode=self.mode)

    def _shorten(self, write: Write) -> None:
        """Read what lies beside a cache as far as it has rows, and write down its size."""
        grown, rows = self.grown[write.node], self._axis(write)
        length = int(write.node.meta["val"].shape[write.dim])
        inside = {write.node, *self.readers[write.node]}
        inside |= {g for n, g in self.grown.items() if n in inside}
        short: dict[fx.Node, fx.Node] = {}
        for node in self.readers[write.node]:
            with self.graph.inserting_before(node):
                size: Count = self.work.size(grown, write.dim)
                for operand in list(node.all_input_nodes):
                    if operand in self.grown or operand in inside or operand.op == "output":
                        continue
                    if self._carries(operand, rows):
                        if operand not in short:
                            short[operand] = self._sliced(operand, rows, size)
                        node.replace_input_with(operand, short[operand])
                patch_literals(node, self.work, rows, length, size)

    def _sliced(self, value: fx.Node, rows: Axis, size: Count) -> fx.Node:
        made = value
        for dim, axis in enumerate(self.work.axes[value]):
            place = locate(axis, rows)
            if place is None:
                continue
            if not place.whole:
                raise UnsupportedError(
                    "what is read beside a cache of fixed length folds its rows with others",
                    where=describe(value),
                    hint="export decode with a cache that grows: torch.cat([past, new], 2)",
                )
            before = made
            made = self.graph.call_function(aten.slice.Tensor, (before, dim, 0, size))
            compute_value(made, self.mode)
        self.work.axes[made] = self.work.axes[value]
        return made

    def _place(self, slot: fx.Node) -> None:
        """Take the input that says where a row is written for what it is beside that.

        A position of the token, where its rows depend on it: then one for each item, as tokens are.
        Else it tells how many rows there are, which the cache does.
        """
        steps = [write for write in self.writes if write.slot is slot]
        value, users = slot.meta["val"], list(slot.users)
        with self.graph.inserting_before(self._first_call()):
            if slot in self.positions:
                if value.ndim == 2:
                    return
                items = steps[0].base.meta["val"].shape[0]
                with self.mode:
                    slot.meta["val"] = torch.empty(
                        (items, 1), dtype=value.dtype, device=value.device
                    )
                made = slot
                for _ in range(2 - value.ndim):
                    made = call(self.graph, aten.select.int, made, 0, 0, mode=self.mode)
            else:
                size = call(
                    self.graph, aten.sym_size.int, steps[0].base, steps[0].dim, mode=self.mode
                )
                options = {"dtype": value.dtype, "device": value.device}
                made = call(
                    self.graph,
                    aten.full.default,
                    list(value.shape),
                    size,
                    mode=self.mode,
                    **options,
                )
        for user in users:
            user.replace_input_with(slot, made)

    def _first_call(self) -> fx.Node:
        return next(node for node in self.graph.nodes if node.op != "placeholder")
