"""Next token: the first step of decode behind a search's prompts, on caches as they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokopt.cli.cache_bits import BitChoices
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import torch_runner
from tokopt.ir.decoding import Decoding
from tokopt.passes.search.stored import Cache
from tokopt.targets.first_step import first_mask, first_position
from tokopt.targets.manifest import CachedLayer


class NextToken:
    """``StoredChoices`` of a model's programs; ``batches`` are prompts by outer name."""

    def __init__(
        self,
        separate: Separate,
        decoding: Decoding,
        bits: BitChoices,
        batches: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self.decoding, self.batches, self.usual = decoding, batches, bits.usual
        self._stored = {one.entries: one for one in bits.caches}
        self.caches: Sequence[Cache] = [one.entries for one in bits.caches]
        graphs, chain, main = separate.program.graphs, separate.original, separate.program.main_name
        links = [link for link in separate.links if link.target == decoding.program]
        places = list(separate.followers().places)
        self.taken = [places.index((link.source, link.output)) for link in links]
        self._inputs = [link.input for link in links]
        entry = next(one for one in chain.programs if one.name == decoding.program)
        self._decode, self._signature = torch_runner(graphs)(entry), entry.signature
        self._outer = {n: chain.inputs[main, n] for n in (decoding.prompt, *decoding.told)}

    @property
    def digest(self) -> str:
        """A digest of what the formats measured."""
        digest = hashlib.sha256()
        for cache in self._stored.values():
            for name, value in cache.tensors.items():
                digest.update(f"{name} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def rows(self, cache: Cache) -> Sequence[CachedLayer]:
        """Return what the manifest would say of a cache."""
        return self._stored[cache].records

    def logits(self, batch: int, token: Tensor, handed: Sequence[Tensor], cache: Cache) -> Tensor:
        """Return decode's answer to ``token``; raises ``InputError`` for prompts padded behind."""
        how, given = self.decoding, dict(zip(self._inputs, handed, strict=True))
        told = {name: self.batches[batch][outer] for name, outer in self._outer.items()}
        prompt = told[how.prompt]
        step = {how.token: token[:, None].to(prompt.dtype)}
        if how.position is not None:
            step[how.position] = first_position(how, self._signature, prompt, told, None)
        mask = first_mask(how, self._signature, prompt, told, given)
        if how.mask is not None and mask is not None:
            step[how.mask] = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        for one, kept in self._stored[cache].by_cache() if cache else ():
            rows = given[one.input]
            read = kept.format.dequantize(kept.side, kept.stored(rows), kept.constants)
            given[one.input] = read.to(rows.dtype)
        with torch.no_grad():
            return self._decode({**given, **step})[how.next_logits][:, -1]
