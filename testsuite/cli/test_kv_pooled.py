"""A cache of pools: prefill codes all of a prompt, decode's rows wait and are coded by salience.

The reference keeps the format's own tensors beside the model in eager torch, and takes salience
from the whole attention matrix.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from testsuite.zoo import handvlm
from testsuite.zoo.handvlm import Decode, HandVlm, Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from testsuite.zoo.weights import randomise
from torch import Tensor

import tokopt
from tokopt.cli.stored_cache import CACHE
from tokopt.cli.verifier import verify
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.kv.format import WINDOW, State
from tokopt.passes.kv.layer import OTHER
from tokopt.passes.kv.registry import find_format

SIZES = Sizes(layers=2, tower_layers=1, width=64)
ZIPCACHE, VIDKV = "zipcache{gap=8}", "vidkv{group=8 window=8}"
STEPS = 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kv-pooled") / "parts.pt2"
    save(Program(parts(SIZES, dynamic=True)), file)
    return file


def prompts() -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 2, 9, 5)
    return {"pixels": pixels, "input_ids": ids}


class Reference:
    """The model in eager torch; ``asked`` has the queries and keys of each layer's attention."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = randomise(HandVlm(SIZES).eval().requires_grad_(False), 0)
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []
        attend = handvlm.scaled_dot_product_attention

        def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
            self.asked.append((q.double().numpy(), k.double().numpy()))
            return attend(q, k, v, attn_mask=attn_mask)

        monkeypatch.setattr(handvlm, "scaled_dot_product_attention", watched)

    def of_prompt(self, layer: int) -> Tensor:
        query, keys = self.asked[layer]
        rows = keys.shape[2]
        late = rows // 20 + 1
        early = [(2 * i + 1) * (rows - late) // (2 * late) for i in range(late)]
        weights = softmax(np.where(np.tri(rows) > 0, logits(query, keys), -np.inf))
        probes = [*early, *range(rows - late, rows)]
        seen = np.tri(rows)[probes].sum(0)
        return torch.from_numpy(weights[:, :, probes].sum(2) / seen.clip(1)).float()

    def of_step(self, layer: int, window: int) -> Tensor:
        query, keys = self.asked[layer]
        weights = softmax(logits(query, keys[:, :, keys.shape[2] - window :]))
        return torch.from_numpy(weights[:, :, 0]).float()


def logits(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    found: np.ndarray = query @ keys.transpose(0, 1, 3, 2) / keys.shape[3] ** 0.5
    return found


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    found: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return found


@pytest.mark.parametrize("text", [ZIPCACHE, VIDKV])
def test_tokens_are_those_of_the_format_beside_the_model(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    asked, format = prompts(), find_format(text)
    made = tokopt.compile(archive, tmp_path / "built", budget=1.0, target="eager", kv=text)
    got = tokopt.load(made.folder).generate(asked, max_new_tokens=STEPS, stop=())
    measured = load_file(made.folder / CACHE) if (made.folder / CACHE).exists() else {}
    constants = [
        {n.removeprefix(start): t for n, t in measured.items() if n.startswith(start)}
        for start in (f"{layer}.{side}." for layer in range(SIZES.layers) for side in OTHER)
    ]
    sides = [side for _ in range(SIZES.layers) for side in OTHER]
    reference = Reference(monkeypatch)
    features = reference.model.vision(asked["pixels"])
    reference.asked.clear()
    answer, *rows = reference.model.language(asked["input_ids"], features)
    cache: list[State] = [
        format.quantize(sides[i], one, constants[i], reference.of_prompt(i // 2))
        for i, one in enumerate(rows)
    ]
    decode, tokens = Decode(reference.model.language), []
    coded = [state[WINDOW].shape[2] for state in cache]
    for step in range(STEPS):
        tokens.append(answer[:, -1].argmax(-1))
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        read = [format.dequantize(sides[i], s, constants[i]) for i, s in enumerate(cache)]
        reference.asked.clear()
        answer, *new = decode(tokens[-1][:, None], place, read)
        for i, one in enumerate(new):
            salience = reference.of_step(i // 2, cache[i][WINDOW].shape[2] + 1)
            cache[i] = format.append(sides[i], cache[i], one, constants[i], salience)
    assert torch.equal(got, torch.stack(tokens, 1)) and len(got.unique()) > 2
    assert all(s[WINDOW].shape[2] < n + STEPS - 8 for s, n in zip(cache, coded, strict=True))


@pytest.mark.parametrize("text", [ZIPCACHE, pytest.param(VIDKV, marks=pytest.mark.exhaustive)])
def test_onnx_runtime_generates_the_same_and_every_gate_holds_again(
    archive: Path, tmp_path: Path, text: str
) -> None:
    options = {"budget": 0.5, "method": "stride", "kv": text}
    eager = tokopt.compile(archive, tmp_path / "eager", target="eager", **options)
    made = tokopt.compile(archive, tmp_path / "built", target="onnxruntime-cpu", **options)
    assert [gate.passed for gate in made.manifest.gates if gate.gate == "coded"] == [True, True]
    one, other = (
        tokopt.load(folder).generate(prompts(), max_new_tokens=STEPS, stop=())
        for folder in (eager.folder, made.folder)
    )
    assert torch.equal(one, other)
    assert all(gate.passed for gate in verify(made.folder, against=archive))
