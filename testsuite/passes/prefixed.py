"""A vision-language model that puts the image in front of, behind or among the words by ``cat``."""

from dataclasses import dataclass

import torch
from testsuite.passes.captioner import SelfAttention
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.export import Dim

HIDDEN, PATCHES = 24, 10


@dataclass(frozen=True)
class Form:
    """Where the image stands and how it gets there.

    ``how``: ``cat`` with ``ahead`` words before it; ``index_put`` or ``scatter`` at places that are
    an input; ``index_copy`` or ``assign`` to fixed ones; ``where`` over rows that were spread.
    """

    how: str = "cat"
    ahead: int = 0
    last: bool = False
    class_row: bool = False
    dynamic: bool = False


class Prefixed(nn.Module):
    """``pixels [B, 10, 5], ids [B, S] (, places [B, 10]) -> [B, rows, 11]``."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.embed, self.words = form, nn.Linear(5, HIDDEN), nn.Embedding(11, HIDDEN)
        self.first = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.tower = nn.ModuleList([SelfAttention(False) for _ in range(2)])
        self.project = nn.Linear(HIDDEN, HIDDEN)
        self.layers = nn.ModuleList([SelfAttention(True) for _ in range(3)])
        self.head = nn.Linear(HIDDEN, 11)

    def spread(self, image: Tensor, shown: Tensor) -> Tensor:
        """Return a row for every position: image rows in order where ``shown``."""
        number, batch = shown.long().cumsum(1), image.shape[0]
        if self.form.how == "where":
            chosen = (number - 1).clamp_min(0).unsqueeze(-1).expand(-1, -1, HIDDEN)
            return image.gather(1, chosen)
        if self.form.how == "where, a row of zeros":
            padded = torch.cat([image.new_zeros(batch, 1, HIDDEN), image], 1)
            return padded[torch.arange(batch).unsqueeze(1), number * shown]
        step = 2 if self.form.how == "where, every other row" else 1
        flat = image.flatten(0, 1)
        every = shown.flatten().long().cumsum(0) - 1
        return flat[(step * every).clamp(0, len(flat) - 1)].view(*shown.shape, HIDDEN)

    def forward(self, pixels: Tensor, ids: Tensor, places: Tensor | None = None) -> Tensor:
        form, image, batch = self.form, self.embed(pixels), pixels.shape[0]
        if form.class_row:
            image = torch.cat([self.first.expand(batch, -1, -1), image], 1)
        for block in self.tower:
            image = block(image)
        image = self.project(image[:, int(form.class_row) :])
        x = self.words(ids)
        if form.how == "cat":
            ahead, behind = x[:, : form.ahead], x[:, form.ahead :]
            parts = [x, image] if form.last else [ahead, image, behind]
            x = torch.cat(parts if form.ahead or form.last else [image, x], 1)
        elif form.how == "index_put":
            assert places is not None
            items = torch.arange(batch).unsqueeze(1)
            x = x.index_put((items, places), image)
        elif form.how == "scatter":
            assert places is not None
            x = x.scatter(1, places.unsqueeze(-1).expand(-1, -1, HIDDEN), image)
        elif form.how == "index_copy":
            x = x.index_copy(1, torch.arange(2, 2 + PATCHES), image)
        elif form.how == "assign":
            x = x.clone()
            x[:, 2 : 2 + PATCHES] = image
        else:
            x = torch.where((ids == 3).unsqueeze(-1), self.spread(image, ids == 3), x)
        for block in self.layers:
            x = block(x)
        return self.head(x)


def build(form: Form, batch: int = 2) -> Sample:
    """Export; a free prompt length where the form is dynamic."""
    module = randomise(Prefixed(form).eval(), 0)
    ids = torch.arange(batch * 6).reshape(batch, 6) % 3
    given: tuple[Tensor, ...] = (noise(batch, PATCHES, 5, seed=1), ids)
    if form.how in ("index_put", "scatter"):
        starts = torch.arange(batch).unsqueeze(1)
        ids = torch.arange(batch * 17).reshape(batch, 17) % 11
        given = (given[0], ids, starts + torch.arange(PATCHES))
    if form.how in ("index_copy", "assign"):
        ids = torch.arange(batch * 17).reshape(batch, 17) % 11
        given = (given[0], ids)
    if form.how.startswith("where"):
        rows = [[1, 2, *[3] * PATCHES, 4, 5], [1, *[3] * PATCHES, 2, 4, 5]]
        given = (given[0], torch.tensor(rows[:batch]))
    shapes = ({}, {1: Dim("words", min=4, max=64)}) if form.dynamic else None
    return Sample("prefixed", capture(module, given, shapes), given, module)
