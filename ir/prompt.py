"""Prompt: which dims of a program's inputs are the length of the prompt, and which input masks it.

The prompt's length is the free size that the decoder's rows are counted by.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.lengths import length_of
from tokopt.ir.masks import find_masks


@dataclass(frozen=True)
class Prompt:
    """The ``symbol`` that counts a prompt's rows; the dim that it is of each input, by name.

    ``masks``: those of these inputs that may say which rows are padding.
    """

    symbol: sympy.Symbol
    inputs: dict[str, int]
    masks: tuple[str, ...]


def find_prompt(facts: Facts) -> Prompt:
    """Return the prompt of a program whose decoder has a free length.

    Raises ``UnsupportedError`` where the length is constant, or an input has it on several dims.
    """
    stack = facts.consumer
    length = stack.rows.root.length
    free = () if isinstance(length, int) else tuple(length.free_symbols)
    if len(free) != 1 or not stack.role.startswith("decoder"):
        raise UnsupportedError(
            f"the prompt length is not free: {stack.role} has {length} rows",
            expected="a program with a decoder, exported with a dynamic prompt length",
        )
    symbol, inputs = free[0], dict[str, int]()
    names = {str(name) for name in facts.exported.graph_signature.user_inputs}
    for node in facts.exported.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name not in names or not isinstance(value, torch.Tensor):
            continue
        sizes = [length_of(size) for size in value.shape]
        dims = [d for d, size in enumerate(sizes) if symbol in getattr(size, "free_symbols", ())]
        if len(dims) > 1 or (dims and sizes[dims[0]] != symbol):
            raise UnsupportedError(
                f"the input {node.name!r} has the prompt length in {tuple(map(str, sizes))}",
                expected="inputs that have it on one dim, as it is",
            )
        if dims:
            inputs[node.name] = dims[0]
    return Prompt(symbol, inputs, find_masks(facts, stack))
