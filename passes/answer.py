"""Answer: the row of an output in which a program says what it thinks of an item.

For a model with a decoder that of the last prompt token; for a tower alone an output without token
axis, else the mean over the rows that are left.  Where a prompt ends in an answer, as well those of
the tokens before each of its own (*answer-forced*).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.axis import locate
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.given import is_float
from tokopt.passes.observe import Observation


def first_output(facts: Facts) -> tuple[fx.Node, int]:
    """Return the output that answers, and which of the program's it is.

    Raises ``UnsupportedError`` where no output is floating-point.
    """
    (output,) = facts.exported.graph.find_nodes(op="output")
    found = [
        (node, number)
        for number, node in enumerate(output.args[0])
        if isinstance(node, fx.Node) and node in facts.dims.axes and is_float(node)
    ]
    if not found:
        raise UnsupportedError("the program has no floating-point output to compare")
    if has_decoder(facts):
        return found[0]
    pooled = [each for each in found if row_dim(facts, each[0], facts.consumer) is None]
    return (pooled or found)[0]


def answer_row(facts: Facts, value: Tensor, node: fx.Node, behind: Tensor | None) -> Tensor:
    """Return an item's row of the value of ``node``, fp32 ``[B, C]``; ``behind``: rows_behind."""
    dim = row_dim(facts, node, facts.consumer)
    if dim is None:
        return value.flatten(1).float()
    rows = value.movedim(dim, 1) if value.dim() > 2 else value.movedim(dim, 0).unsqueeze(0)
    rows = rows.flatten(2).float()
    if not has_decoder(facts):
        there = (rows != 0).any(-1, keepdim=True)  # dropped rows of an output are 0
        return (rows * there).sum(1) / there.sum(1).clamp_min(1)
    if behind is None:
        return rows[:, -1]
    last = (rows.shape[1] - 1 - behind).reshape(-1, 1, 1)
    return rows.gather(1, last.expand(-1, 1, rows.shape[2]))[:, 0]


def answer_rows(
    facts: Facts,
    value: Tensor,
    node: fx.Node,
    behind: Tensor | None,
    answered: Tensor | None = None,
) -> Tensor:
    """Return an item's rows of the value of ``node`` that answer, fp32 ``[B, 1 + most, C]``.

    The last first, then those before it, one for each token of an answer that the prompt ends in:
    ``answered`` int64 ``[B]``; where an item has fewer its first is there again.
    """
    last = answer_row(facts, value, node, behind)
    if answered is None:
        return last.unsqueeze(1)
    end = torch.zeros_like(answered) if behind is None else behind
    steps = range(1, int(answered.max()) + 1)
    before = [answer_row(facts, value, node, end + answered.clamp_max(step)) for step in steps]
    return torch.stack([last, *before], 1)


def check_answered(facts: Facts, seen: Observation, answered: Tensor, nodes: list[fx.Node]) -> None:
    """Raise ``InputError`` where answers are longer than the text behind the visual rows.

    ``UnsupportedError`` where one of ``nodes`` has no row for each token of the prompt.
    """
    if not has_decoder(facts) or any(row_dim(facts, n, facts.consumer) is None for n in nodes):
        raise UnsupportedError(
            "answers in prompts are judged at every token, and this program tells one row",
            expected="an output with a row for each token of the prompt",
            hint="leave the answers out of the calibration samples",
        )
    candidates = seen.stacks[facts.consumer.role].candidates
    rows = candidates.shape[1]
    last = (candidates * torch.arange(rows, device=candidates.device)).amax(1)
    behind = rows_behind(facts, seen)
    room = rows - 1 - last - (0 if behind is None else behind.to(last.device)) - 1
    if bool((answered < 0).any()) or bool((answered.to(last.device) > room).any()):
        raise InputError(
            f"an answer of {int(answered.max())} tokens, and {int(room.min())} rows of text behind "
            "the visual ones before the last",
            expected="how many tokens at the end of each prompt are its answer",
        )


def rows_behind(facts: Facts, seen: Observation) -> Tensor | None:
    """Return how many rows (padding) stand behind each item's last token; None: none do."""
    if not has_decoder(facts):
        return None
    layers = seen.stacks[facts.consumer.role].layers
    if not layers or layers[0].last is None:
        return None
    return layers[0].key.shape[2] - 1 - layers[0].last


def has_decoder(facts: Facts) -> bool:
    """Return whether the last token answers."""
    return facts.consumer.role.startswith("decoder")


def row_dim(facts: Facts, node: fx.Node, stack: TokenStack) -> int | None:
    """Return the dim of a value that holds the rows of a stack's stream, alone."""
    axes = [axis.root for axis in facts.dims.axes[node]]
    wholes = [i for i, axis in enumerate(axes) if axis is stack.rows.root]
    if wholes:
        return wholes[0]
    parts = [i for i, axis in enumerate(axes) if locate(axis, stack.tokens) is not None]
    return parts[0] if len(parts) == 1 else None
