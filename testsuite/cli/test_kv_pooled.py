"""A cache of pools: prefill codes all of a prompt, decode's rows wait and are coded by salience.

The reference keeps the format's own tensors beside the model in eager torch, and takes salience
from the whole attention matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from tokopt.cli.cache_coders import coders_of, salience_of
from tokopt.cli.stored_cache import CACHE
from tokopt.cli.verifier import verify
from tokopt.ir.cache import find_caches
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.kv.format import WINDOW, State
from tokopt.passes.kv.kept import Kept
from tokopt.passes.kv.layer import OTHER
from tokopt.passes.kv.program import ranked, with_stored
from tokopt.passes.kv.registry import find_format
from tokopt.passes.kv.salient import with_salience
from tokopt.passes.kv.samples import Samples
from tokopt.passes.kv.windowed import Windowed
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import relative_difference
from tokopt.targets.calling import runner_of
from tokopt.targets.coding import coded
from tokopt.targets.first_step import first_mask
from tokopt.targets.programs import Coder
from tokopt.targets.signature import Signature

SIZES = Sizes(layers=1, tower_layers=1, width=64)
ZIPCACHE, VIDKV = "zipcache{gap=8}", "vidkv{group=8 window=8}"
ALL_SALIENT = "vidkv{window=32}"
"""Of the prompts below this codes one group, a salient one: the pool of the rest is empty."""
PARTS = tuple(Kept("", "value", find_format(VIDKV), {}).parts)
STEPS = 20
SIDES = [side for _ in range(SIZES.layers) for side in OTHER]


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


def by_format(
    reference: Reference, text: str, constants: list[State]
) -> Iterator[tuple[Tensor, list[State]]]:
    """Yield greedy tokens, and what the format has stored of each cache before each of them."""
    asked, format = prompts(), find_format(text)
    features = reference.model.vision(asked["pixels"])
    reference.asked.clear()
    answer, *rows = reference.model.language(asked["input_ids"], features)
    cache: list[State] = [
        format.quantize(SIDES[i], one, constants[i], reference.of_prompt(i // 2))
        for i, one in enumerate(rows)
    ]
    decode = Decode(reference.model.language)
    for step in range(STEPS):
        token = answer[:, -1].argmax(-1)
        yield token, cache
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        read = [format.dequantize(SIDES[i], s, constants[i]) for i, s in enumerate(cache)]
        reference.asked.clear()
        answer, *new = decode(token[:, None], place, read)
        cache = [
            format.append(
                SIDES[i],
                cache[i],
                one,
                constants[i],
                reference.of_step(i // 2, cache[i][WINDOW].shape[2] + 1),
            )
            for i, one in enumerate(new)
        ]


@pytest.mark.parametrize("text", [ZIPCACHE, ALL_SALIENT])
def test_programs_store_what_the_format_does_beside_the_model(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    asked, format = prompts(), find_format(text)
    assert isinstance(format, Windowed)
    made = {name: normalize(one) for name, one in parts(SIZES, dynamic=True).items()}
    vision, prefill, decode = (runner_of(made[n]) for n in ("vision", "prefill", "decode"))
    (features,) = vision({"pixels": asked["pixels"]}).values()
    rows = list(prefill({"input_ids": asked["input_ids"], "features": features}).values())[1:]
    constants = [format.calibrate(s, Samples([r])) for s, r in zip(SIDES, rows, strict=True)]
    kept = [Kept(f"kv_{i}", s, format, constants[i]) for i, s in enumerate(SIDES)]
    names = [f"cache_{i}" for i in range(len(kept))]
    caches = find_caches(made["decode"], names)
    assert caches is not None
    further = [k.input_of(n, p) for n, k in zip(names, kept, strict=True) for p in k.parts]
    stored = with_stored(made["prefill"], {}, dict(enumerate(kept, 1)))
    prefill = runner_of(stored, ["logits", *names, *further])
    inputs = dict(zip(names, kept, strict=True))
    ranks = [salience_of(name) for name in ranked(inputs)]
    stored = with_stored(made["decode"], inputs, dict(enumerate(kept, 1)))
    decode = runner_of(stored, ["logits", *(f"new_{n}" for n in names), *ranks])
    values = {t.name: t.value for t in tensor_inputs(made["decode"])}
    programs = coders_of("decode", zip(caches, kept, strict=True), values)
    coders = [one.entry for one in programs]
    runners = {c.entry.name: runner_of(c.part.exported, c.part.outputs) for c in programs}
    given = prefill({"input_ids": asked["input_ids"], "features": features})
    answer, step = given.pop("logits"), 0
    for token, cache in by_format(Reference(monkeypatch), text, constants):
        assert torch.equal(answer[:, -1].argmax(-1), token)
        given = coded(coders, given, lambda coder: runners[coder.name])
        for name, how, state in zip(names, kept, cache, strict=True):
            for part, value in state.items():
                got = given[how.input_of(name, part)]
                assert got.shape == value.shape and relative_difference(value, got) < 2e-3
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        new = decode({**given, "input_ids": token[:, None], "positions": place})
        for name in names:
            given[name] = torch.cat([given[name], new[f"new_{name}"]], 2)
        given |= {name: new[name] for name in ranks}
        answer, step = new["logits"], step + 1


def test_prompts_of_any_length_are_coded_whatever_the_example_was() -> None:
    """Of the example's five groups one is salient, and is not taken for the only one."""
    format = find_format(VIDKV)
    prefill = normalize(parts(SIZES, dynamic=True)["prefill"])
    kept = [Kept("kv", "value", format, {})]
    stored = runner_of(with_stored(prefill, {}, {2: kept[0]}), ["logits", "keys", "kv", *PARTS])
    plain = runner_of(with_salience(prefill, {2: "value"}), ["logits", "keys", "kv", "salience"])
    for text in (3, 9, 70):
        pixels, ids = inputs(SIZES, 2, text)
        given = {"input_ids": ids, "features": HandVlm(SIZES).vision(pixels).detach()}
        found, rows = stored(given), plain(given)
        wanted = kept[0].stored(kept[0].handed(rows["kv"]), rows["salience"])
        assert wanted["salient.scale"].shape[2] == -(-(ids.shape[1] // 8) // 5)
        for name in kept[0].parts:
            assert torch.equal(found[name], wanted[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", [ZIPCACHE, VIDKV])
def test_tokens_are_those_of_the_format_beside_the_model(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    made = tokopt.compile(archive, tmp_path / "built", budget=1.0, target="eager", kv=text)
    got = tokopt.load(made.folder).generate(prompts(), max_new_tokens=STEPS, stop=())
    file = made.folder / CACHE
    measured = load_file(file) if file.exists() else {}
    constants = [
        {n.removeprefix(start): t for n, t in measured.items() if n.startswith(start)}
        for start in (f"{layer}.{side}." for layer in range(SIZES.layers) for side in OTHER)
    ]
    tokens = [token for token, _ in by_format(Reference(monkeypatch), text, constants)]
    assert torch.equal(got, torch.stack(tokens, 1)) and len(got.unique()) > 2


def test_padding_cannot_be_told_among_rows_of_pools() -> None:
    empty = Signature((), (), {})
    coder = Coder("coder", "-coder", empty, pooled=True)
    how = Decoding(
        "decode", "ids", "logits", "ids", None, "mask", None, (), "logits", padding="mask"
    )
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(InputError, match="padding cannot be told"):
        first_mask(how, empty, mask, {"mask": mask}, {}, [coder])


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", [ZIPCACHE, VIDKV])
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
