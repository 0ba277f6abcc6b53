"""A cache coded in blocks: rows wait in 16 bits, then a program between two calls codes them.

The reference keeps every row and stores the whole cache anew for each token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from testsuite.cli.test_generate import padded
from testsuite.zoo import llava
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor

import tokopt
from tokopt.cli.bencher import bench
from tokopt.cli.compiled import Compiled
from tokopt.cli.main import main
from tokopt.cli.verifier import verify
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.kv.registry import find_format
from tokopt.passes.limits import Limits
from tokopt.targets import coding
from tokopt.targets.manifest import CachedLayer, read_manifest

SIZES = Sizes(layers=2, tower_layers=1, width=64)
FORMAT = "kivi{bits=4 group=8 window=8}"
STEPS = 20
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Built:
    archive: Path
    made: Compiled

    def options(self, kv: str | None) -> dict[str, object]:
        return {"budget": 0.5, "method": "stride", "kv": kv}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("kv-coded")
    archive = place / "parts.pt2"
    save(Program(parts(SIZES, dynamic=True)), archive)
    found = Built(archive, tokopt.compile(archive, place / "none", budget=1.0, target="eager"))
    made = tokopt.compile(
        archive, place / "built", target="onnxruntime-cpu", **found.options(FORMAT)
    )
    return Built(archive, made)


def prompts() -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 2, 9, 5)
    return {"pixels": pixels, "input_ids": ids}


def test_gates_code_rows_and_the_manifest_counts_those_that_wait(built: Built) -> None:
    manifest = read_manifest(built.made.folder)
    assert [gate.passed for gate in manifest.gates if gate.gate == "coded"] == [True, True]
    layer = manifest.cache[0]
    assert (layer.key, layer.value, layer.window) == (FORMAT, FORMAT, 8 + 8 - 1)
    # a row of 64 values: 32 bytes of codes; scale and zero of 2 bytes for each 8 values; both sides
    assert (layer.bytes_per_token, layer.full) == (2 * (32 + 2 * 2 * 64 / 8), 2 * 2 * 64)
    rows = SIZES.visual // 2
    stored = 15 + (rows - 15) * layer.bytes_per_token / layer.full
    kv = manifest.budget.total["kv"].measured
    assert kv is not None and abs(kv - stored / SIZES.visual) < 1e-12


def test_a_layers_share_counts_waiting_rows_in_full() -> None:
    layer = CachedLayer(0, "kivi", "kivi", 3.0, 16.0, window=10)
    assert (layer.share(0), layer.share(10), layer.share(20)) == (1.0, 1.0, (10 + 10 * 3 / 16) / 20)


def test_tokens_are_those_of_the_format_on_the_whole_cache_each_time(
    built: Built, tmp_path: Path
) -> None:
    asked, format = prompts(), find_format(FORMAT)
    full = tokopt.compile(built.archive, tmp_path / "full", target="eager", **built.options(None))
    model, plain = tokopt.load(built.made.folder), tokopt.load(full.folder)

    def read(number: int, rows: Tensor) -> Tensor:
        side = "key" if number % 2 == 0 else "value"
        return format.dequantize(side, format.quantize(side, rows, {}, None), {})

    first = plain(asked)
    caches = [first[f"output_{i + 1}"] for i in range(4)]
    logits, made = first["output_0"][:, -1], []
    decode = plain.program("decode")
    for step in range(STEPS):
        made.append(logits.argmax(-1))
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        given = {f"cache_{i}": read(i, rows) for i, rows in enumerate(caches)}
        ran = decode(input_ids=made[-1][:, None], positions=place, **given)
        caches = [torch.cat([rows, ran[f"output_{i + 1}"]], 2) for i, rows in enumerate(caches)]
        logits = ran["output_0"][:, -1]
    got = model.generate(asked, max_new_tokens=STEPS, stop=())
    assert torch.equal(got, torch.stack(made, 1)) and len(got.unique()) > 2


def test_onnx_runtime_alone_generates_by_the_manifest(built: Built) -> None:
    """The loop of docs/kv.md: numpy and onnxruntime, no tokopt."""
    folder, asked = built.made.folder, prompts()
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = {one["name"]: one for one in manifest["programs"]}
    coders = entries["decode"]["coders"]
    sessions = {
        one["name"]: onnxruntime.InferenceSession(str(folder / f"model{one['part']}.onnx"))
        for one in [*entries.values(), *coders]
    }

    def run(name: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [one.name for one in sessions[name].get_outputs()]
        return dict(zip(names, sessions[name].run(names, given), strict=True))

    arrays = {name: value.numpy() for name, value in asked.items()}
    seen = run("vision", {"pixels": arrays["pixels"]})
    links = [one for one in manifest["links"] if one["target"] == "prefill"]
    given = {one["input"]: seen[one["output"]] for one in links}
    ran = run("prefill", {"input_ids": arrays["input_ids"], **given})
    links = [one for one in manifest["links"] if one["target"] == "decode"]
    state = {one["input"]: ran[one["output"]] for one in links}
    logits, made = ran["output_0"][:, -1], []
    for step in range(STEPS):
        made.append(logits.argmax(-1))
        for coder in coders:
            for cache in coder["caches"]:
                window, unit = state[cache["window"]], coder["unit"]
                for output, part in cache["parts"].items():
                    if part not in state:
                        (spec,) = [o for o in coder["signature"]["outputs"] if o["name"] == output]
                        shape = (*window.shape[:2], 0, *spec["shape"][3:])
                        state[part] = np.empty(shape, spec["dtype"])
                while window.shape[2] - coder["waits"] >= unit:
                    codes = run(coder["name"], {"rows": window[:, :, :unit]})
                    for output, part in cache["parts"].items():
                        state[part] = np.concatenate([state[part], codes[output]], 2)
                    window = window[:, :, unit:]
                state[cache["window"]] = window
        place = np.full((2, 1), asked["input_ids"].shape[1] + step)
        ran = run("decode", {"input_ids": made[-1][:, None], "positions": place, **state})
        for cache in manifest["decoding"]["caches"]:
            grown = [state[cache["input"]], ran[cache["output"]]]
            state[cache["input"]] = np.concatenate(grown, cache["dim"])
        logits = ran["output_0"][:, -1]
    got = tokopt.load(folder).generate(asked, max_new_tokens=STEPS, stop=())
    assert np.array_equal(got.numpy(), np.stack(made, 1))


@pytest.mark.exhaustive
def test_verify_repeats_the_gates(built: Built) -> None:
    gates = verify(built.made.folder, against=built.archive)
    assert all(gate.passed for gate in gates)
    assert [gate.gate for gate in gates].count("coded") == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", ["order", "early"])
def test_rows_coded_otherwise_fail_the_gate(
    built: Built, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "order":
        units = coding._units
        monkeypatch.setattr(coding, "_units", lambda rows, unit: units(rows, unit).flip(2))
    else:
        leave = coding._coded
        late = lambda coder, *rest: leave(_waiting(coder), *rest)  # noqa: E731
        monkeypatch.setattr(coding, "_coded", late)
    gates = verify(built.made.folder, against=built.archive)
    failed = {gate.gate for gate in gates if not gate.passed}
    assert failed >= ({"coded"} if wrong == "order" else {"cache", "coded"})


def _waiting(coder):  # type: ignore[no-untyped-def]
    return coder.__class__(**{**vars(coder), "waits": 0})


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--kv", "zipcache/int8"), 2, "do not lie in one order"),
        (("--kv", "zipcache", "--sparse-decode", "delta"), 3, "pages of rows in their order"),
        (("--kv", "kivi{group=8 window=0}/kivi{group=8 window=8}"), 3, "let other rows wait"),
        (("--kv", "kivi{group=32}"), 2, "head width"),
        (("--kv", "kivi{rows=8}"), 2, "kivi: rows=8"),
    ],
)
def test_what_programs_cannot_store_is_refused(
    built: Built, tmp_path: Path, options: tuple[str, ...], code: int, message: str, capfd: Capture
) -> None:
    line = ["compile", str(built.archive), "--budget", "0.5", "-o", str(tmp_path / "no")]
    assert main([*line, *options]) == code
    assert message in capfd.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.exhaustive
def test_a_limit_of_bytes_counts_the_rows_that_wait(built: Built, tmp_path: Path) -> None:
    """By hand: 15 rows wait in 16 bits, the others take 128 of 256 bytes each."""
    most = (15 + (SIZES.visual // 2 - 15) / 2) / SIZES.visual
    options = {"budget": Limits(kv=most), "method": "stride", "target": "eager", "kv": FORMAT}
    made = tokopt.compile(built.archive, tmp_path / "x", **options)
    assert made.manifest.budget.total["kv"].predicted == pytest.approx(most)
    assert set(made.budget.rows) == {SIZES.visual // 2}


def test_a_cache_that_would_overflow_is_refused_with_coded_rows_counted(built: Built) -> None:
    model, asked = tokopt.load(built.made.folder), prompts()
    rows = SIZES.visual // 2 + 9
    with pytest.raises(InputError, match="overflows"):
        model.generate(asked, max_new_tokens=SIZES.longest - rows + 3, stop=())


@pytest.mark.exhaustive
def test_aotinductor_gives_the_same_tokens_from_an_empty_and_a_full_window(
    built: Built, tmp_path: Path
) -> None:
    want = tokopt.load(built.made.folder).generate(prompts(), max_new_tokens=STEPS, stop=())
    options = built.options(FORMAT)
    made = tokopt.compile(built.archive, tmp_path / "a", target="aotinductor", **options)
    got = tokopt.load(made.folder).generate(prompts(), max_new_tokens=STEPS, stop=())
    assert made.manifest.status == "ok" and torch.equal(got, want)


@pytest.mark.exhaustive
def test_the_plan_makes_the_same_programs_and_sparse_decode_goes_with_it(
    built: Built, tmp_path: Path
) -> None:
    folder = built.made.folder
    plan = folder / "plan.toml"
    made = tokopt.compile(built.archive, tmp_path / "b", plan=plan, target="onnxruntime-cpu")
    assert (made.folder / "program.pt2").read_bytes() == (folder / "program.pt2").read_bytes()
    sparse = tokopt.compile(
        built.archive,
        tmp_path / "c",
        sparse_decode="delta{page=4 pages=6 recent=2 from=32}",
        target="onnxruntime-cpu",
        **built.options(FORMAT),
    )
    assert sparse.manifest.status == "ok"
    model = tokopt.load(sparse.folder)
    assert model.generate(prompts(), max_new_tokens=STEPS, stop=()).shape == (2, STEPS)


@pytest.mark.exhaustive
def test_a_step_and_an_answer_are_timed_with_their_coders(built: Built) -> None:
    options = {"rounds": 1, "tokens": STEPS, "stages": False}
    found = bench(built.made.folder, built.archive, **options)
    assert [one.what for one in found.timed] == ["prompt", "decode", f"prompt and {STEPS} tokens"]
    assert found.whole and "compiled decode" in found.memory


@pytest.mark.exhaustive
def test_padded_prompts_are_gone_on_with(tmp_path: Path) -> None:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    model.save_pretrained(tmp_path / "model")
    options = ["--decode", "--padding", "--dynamic", "batch,length", "-o", str(tmp_path / "a.pt2")]
    assert main(["export", str(tmp_path / "model"), *options]) == 0
    line = ["compile", str(tmp_path / "a.pt2"), "--budget", "0.25", "--target", "onnxruntime-cpu"]
    line += ["--kv", "kivi{bits=4 group=8 window=0}/int8", "-o", str(tmp_path / "built")]
    assert main(line) == 0
    artifact, asked = tokopt.load(tmp_path / "built"), padded(7, (0, 3))
    got = artifact.generate(asked, max_new_tokens=STEPS, stop=())
    # an item alone, without its padding, has other groups: only the first, unpadded, is the same
    alone = {name: value[:1] for name, value in asked.items()}
    assert torch.equal(got[:1], artifact.generate(alone, max_new_tokens=STEPS, stop=()))


@pytest.mark.exhaustive
def test_layers_of_other_lengths_have_other_rows_coded(tmp_path: Path) -> None:
    """A stage inside the decoder; the reference stores the whole caches anew for each token."""
    model = llava.model(attention="sdpa", seed=0, layers=2)
    model.save_pretrained(tmp_path / "model")
    options = ["--decode", "--dynamic", "batch,length", "-o", str(tmp_path / "a.pt2")]
    assert main(["export", str(tmp_path / "model"), *options]) == 0
    text = "kivi{bits=4 group=8 window=0}"
    stage = {"budget": 0.6, "method": "fastv"}
    made = tokopt.compile(
        tmp_path / "a.pt2", tmp_path / "built", target="onnxruntime-cpu", kv=text, **stage
    )
    full = tokopt.compile(tmp_path / "a.pt2", tmp_path / "full", target="eager", **stage)
    artifact, plain, format = tokopt.load(made.folder), tokopt.load(full.folder), find_format(text)
    asked = {n: v for n, v in padded(7, (0, 0)).items() if n != "attention_mask"}
    first, decode = plain(asked), plain.program("decode")
    caches = [first[f"past_{i}"] for i in range(4)]
    assert len({rows.shape[2] // 8 for rows in caches}) == 2

    def read(number: int, rows: Tensor) -> Tensor:
        side = "key" if number % 2 == 0 else "value"
        return format.dequantize(side, format.quantize(side, rows, {}, None), {})

    logits, tokens = first["logits"][:, -1], []
    for step in range(STEPS):
        tokens.append(logits.argmax(-1))
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        past = {f"past_{i}": read(i, rows) for i, rows in enumerate(caches)}
        ran = decode(input_ids=tokens[-1][:, None], position_ids=place, **past)
        new = (ran[f"present_{i}"][:, :, -1:] for i in range(4))
        caches = [torch.cat([rows, one], 2) for rows, one in zip(caches, new, strict=True)]
        logits = ran["logits"][:, -1]
    got = artifact.generate(asked, max_new_tokens=STEPS, stop=())
    assert torch.equal(got, torch.stack(tokens, 1)) and len(got.unique()) > 2


@pytest.mark.exhaustive
def test_each_of_two_budgets_generates_as_alone(built: Built, tmp_path: Path) -> None:
    options = {"method": "stride", "kv": FORMAT, "target": "onnxruntime-cpu"}
    two = tokopt.compile(built.archive, tmp_path / "two", budget=[0.5, 0.25], **options)
    one = tokopt.compile(built.archive, tmp_path / "one", budget=0.25, **options)
    alone = tokopt.load(one.folder).generate(prompts(), max_new_tokens=STEPS, stop=())
    both = tokopt.load(two.folder)
    got = both.at(0.25).generate(prompts(), max_new_tokens=STEPS, stop=())
    other = both.generate(prompts(), max_new_tokens=STEPS, stop=())
    assert torch.equal(got, alone) and not torch.equal(got, other)


@pytest.mark.exhaustive
def test_half_of_a_layer_in_blocks_shares_one_length(built: Built, tmp_path: Path) -> None:
    """Keys wait and are coded, values are stored row by row: still as many rows."""
    options = built.options("kivi{bits=4 group=8 window=0}/int8")
    made = tokopt.compile(built.archive, tmp_path / "x", target="eager", **options)
    assert made.manifest.status == "ok"
    assert {one.window for one in made.manifest.cache} == {7}
    got = tokopt.load(made.folder).generate(prompts(), max_new_tokens=4, stop=())
    assert got.shape == (2, 4)


def test_a_format_needs_a_cache_that_grows() -> None:
    from tokopt.passes.kv.kept import Kept
    from tokopt.passes.kv.program import with_stored

    decode = parts(SIZES, dynamic=False)["decode"]
    kept = Kept("k", "key", find_format(FORMAT), {})
    with pytest.raises(UnsupportedError, match="free length"):
        with_stored(decode, {"cache_0": kept}, {})
