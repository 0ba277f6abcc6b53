"""Masks: which inputs of a program may say which rows of a prompt are padding.

A mask is an integer or boolean input, one number per row (0: padding), that reaches the decoder's
first attention, and is neither what the text is looked up by nor what says where images go.
"""

from __future__ import annotations

import torch
from torch import fx

from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.lengths import length_of
from tokopt.ir.movement import SAME_VALUES


def find_masks(facts: Facts, stack: TokenStack) -> tuple[str, ...]:
    """Return the inputs that may say which rows of a decoder are padding."""
    attention = stack.stack.layers[0].attention[0]
    reads = attention.mask if attention.fused else attention.node
    if reads is None:
        return ()
    names, found = {str(name) for name in facts.exported.graph_signature.user_inputs}, []
    written = None if stack.merge is None else stack.merge.mask
    for node in facts.exported.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name not in names or not isinstance(value, torch.Tensor) or value.dim() != 2:
            continue
        if value.is_floating_point() or length_of(value.shape[1]) != stack.rows.root.length:
            continue
        told = written is not None and facts.dependence.reaches(node, written)
        if not told and not _is_looked_up(node) and facts.dependence.reaches(node, reads):
            found.append(node.name)
    return tuple(found)


def _is_looked_up(node: fx.Node) -> bool:
    """Return whether rows of a table are looked up by an input's own values."""
    for user in node.users:
        if operator_name(user) == "aten::embedding" and arguments_of(user)["indices"] is node:
            return True
        if operator_name(user) in SAME_VALUES and _is_looked_up(user):
            return True
    return False
