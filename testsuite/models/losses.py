"""The two losses: answers to questions, and the spelling of what each patch shows.

Spelling: the projected patch, times the word embeddings, must give the digit, colour and quadrant
of the digit in it, and the tower's summary (CLS, or the mean of the rows where there is none) must
list the digits and colours present.  Without it the tower does not learn in minutes; with it
information stays in its patch and CLS attends to the digits.
"""

from typing import Any

import numpy as np
import torch
from testsuite.models.canvas import GRID, TOKENS, Scenes
from testsuite.models.digits import BOS, COLOUR, NUMBER, QUADRANT, TEXT
from testsuite.models.family import WIDTH, Family
from torch import nn
from torch.nn import functional as F


class Spelling(nn.Module):
    """The auxiliary losses; its heads are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.found = nn.Linear(WIDTH, 1)
        self.column = nn.Linear(WIDTH, GRID)
        self.row = nn.Linear(WIDTH, GRID)
        self.listed = nn.Linear(WIDTH, 16)

    def forward(
        self,
        rows: torch.Tensor,
        index: torch.Tensor,
        summary: torch.Tensor,
        words: torch.Tensor,
        seen: Scenes,
    ) -> tuple[torch.Tensor, float]:
        real = np.arange(seen.digit.shape[1]) < seen.count[:, None]
        item, slot = np.nonzero(real)
        cell = seen.cell[item, slot]
        mine = rows[item, cell]
        column, row = cell % GRID, cell // GRID
        quadrant = 2 * (row >= GRID // 2) + (column >= GRID // 2)
        digit = torch.from_numpy(seen.digit[item, slot])
        spelt = mine @ words.T
        touched = torch.from_numpy(seen.patches).float()
        present = torch.zeros(len(rows), 16)
        present[item, digit] = 1
        present[item, 10 + seen.colour[item, slot]] = 1
        loss = (
            F.cross_entropy(spelt[:, :COLOUR], digit)
            + F.cross_entropy(spelt[:, COLOUR:QUADRANT], torch.from_numpy(seen.colour[item, slot]))
            + F.cross_entropy(spelt[:, QUADRANT:NUMBER], torch.from_numpy(quadrant))
            + 0.3 * F.cross_entropy(self.column(mine), torch.from_numpy(column))
            + 0.3 * F.cross_entropy(self.row(mine), torch.from_numpy(row))
            + 2
            * F.binary_cross_entropy_with_logits(
                self.found(rows.gather(1, index[..., None].expand(-1, -1, WIDTH)))[..., 0],
                touched.gather(1, index),
            )
            + F.binary_cross_entropy_with_logits(self.listed(summary), present)
        )
        right = (spelt[:, :COLOUR].argmax(-1) == digit).float().mean().item()
        return loss, right


def answer_loss(
    family: Family,
    model: Any,
    rows: torch.Tensor,
    index: torch.Tensor,
    words: torch.Tensor,
    answers: torch.Tensor,
) -> torch.Tensor:
    """Cross entropy of packed questions [B, K, TEXT], each seeing BOS, the rows kept and itself."""
    size, per, _ = words.shape
    embed = model.get_input_embeddings()
    picture = rows.gather(1, index[..., None].expand(-1, -1, WIDTH))
    start = embed(torch.full((size, 1), BOS))
    merged = torch.cat([start, picture, embed(words.flatten(1))], 1)
    own = 1 + TOKENS + torch.arange(TEXT).repeat(per).expand(size, -1)
    position = torch.cat([torch.zeros(size, 1, dtype=torch.long), 1 + index, own], 1)
    first, length = 1 + index.shape[1], merged.shape[1]
    block = (torch.arange(length) - first).div(TEXT, rounding_mode="floor").clamp(min=-1)
    block[:first] = -1
    sees = (block == block[:, None]) | (block == -1)
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    out = model.model.language_model(
        inputs_embeds=merged,
        attention_mask=sees[None, None].expand(size, 1, -1, -1),
        position_ids=family.position_ids(position),
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(out[:, first:].unflatten(1, (per, TEXT))[:, :, -1])
    return F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), ignore_index=-100)
