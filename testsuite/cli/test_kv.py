"""A cache in few bits: compiled, run, verified and applied again; what cannot be is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from testsuite.cli.test_generate import padded
from testsuite.zoo import llava
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor

import tokopt
from tokopt.cli import cache_bits
from tokopt.cli.cache_formats import measured
from tokopt.cli.cache_gate import judge_cache
from tokopt.cli.compiled import Compiled
from tokopt.cli.main import main
from tokopt.cli.separate import Separate
from tokopt.cli.stored_cache import CACHE
from tokopt.cli.verifier import verify
from tokopt.ir.facts import analyse
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.kv.asked import Auto
from tokopt.passes.kv.int4 import Int4
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.layer import OTHER
from tokopt.passes.limits import Limits
from tokopt.targets.manifest import read_manifest

SIZES = Sizes(layers=2, tower_layers=1)
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Built:
    archive: Path
    made: Compiled


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Half of the rows, keys in 8 bits and values in 4, and the same with all bits."""
    place = tmp_path_factory.mktemp("kv")
    archive = place / "parts.pt2"
    save(Program(parts(SIZES, dynamic=True)), archive)
    options = {"budget": 0.5, "method": "stride", "target": "onnxruntime-cpu"}
    return Built(archive, tokopt.compile(archive, place / "built", kv="int8/int4", **options))


def prompts(batch: int = 2, text: int = 9) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, batch, text, 5)
    return {"pixels": pixels, "input_ids": ids}


def test_what_a_row_costs_is_counted_and_every_gate_passed(built: Built) -> None:
    manifest = read_manifest(built.made.folder)
    width = SIZES.width
    assert [(one.layer, one.key, one.value) for one in manifest.cache] == [
        (0, "int8", "int4"),
        (1, "int8", "int4"),
    ]
    assert {(one.bytes_per_token, one.full) for one in manifest.cache} == {(1.5 * width, 4 * width)}
    assert manifest.budget.total["kv"].measured == 0.5 * 1.5 / 4
    cache = [gate for gate in manifest.gates if gate.gate == "cache"]
    assert (
        len(cache) == 1
        and cache[0].passed
        and "greedy tokens as with all bits" in (cache[0].compared)
    )
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.load(built.made.folder / "model-decode.onnx").graph.input
    }
    caches = [name for name in types if name.startswith("cache")]
    assert [types[name] for name in caches] == [onnx.TensorProto.INT8, onnx.TensorProto.UINT8] * 2


def test_explain_says_how_the_cache_is_stored(built: Built, capfd: Capture) -> None:
    assert main(["explain", str(built.made.folder)]) == 0
    width = SIZES.width
    said = f"cache: layers 0 to 1: int8/int4, {1.5 * width:g} of {4 * width} bytes a token"
    assert said in capfd.readouterr().out


def test_tokens_are_those_of_the_formats_around_programs_with_all_bits(built: Built) -> None:
    """The reference stores and reads caches itself, between runs of an artifact of all bits."""
    folder, asked = built.made.folder, prompts()
    full = tokopt.compile(
        built.archive, folder.with_name("full"), plan=_without_cache(built), target="eager"
    )
    model, plain = tokopt.load(folder), tokopt.load(full.folder)
    got = model.generate(asked, max_new_tokens=6, stop=())
    constants = load_file(folder / CACHE)
    formats = {"key": Int8(), "value": Int4()}

    def stored(number: int, rows: Tensor) -> Tensor:
        side = "key" if number % 2 == 0 else "value"
        own = {n: constants[f"{number // 2}.{side}.{n}"] for n in ("centre", "scale")}
        state = formats[side].quantize(side, rows, own, None)
        return formats[side].dequantize(side, state, own)

    first = plain(asked)
    caches = [stored(i, first[f"output_{i + 1}"]) for i in range(4)]
    logits, made = first["output_0"][:, -1], []
    decode = plain.program("decode")
    for step in range(6):
        made.append(logits.argmax(-1))
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        given = {f"cache_{i}": rows for i, rows in enumerate(caches)}
        ran = decode(input_ids=made[-1][:, None], positions=place, **given)
        caches = [
            torch.cat([rows, stored(i, ran[f"output_{i + 1}"])], 2) for i, rows in enumerate(caches)
        ]
        logits = ran["output_0"][:, -1]
    assert torch.equal(got, torch.stack(made, 1))


def _without_cache(built: Built) -> Path:
    text = (built.made.folder / "plan.toml").read_text()
    plan = built.made.folder.with_name("full.toml")
    plan.write_text(text.partition("\n[[cache]]")[0])
    return plan


@pytest.mark.exhaustive
def test_the_plan_and_its_file_make_the_same_programs_again(built: Built, tmp_path: Path) -> None:
    folder, other = built.made.folder, tmp_path / "again"
    pixels, ids = inputs(SIZES, 2, 6, 9)
    token = ids[:, :1].clone()
    given = {"pixels": pixels * 3, "input_ids": ids, "decode_input_ids": token}
    save_file({**given, "positions": torch.full_like(token, 6)}, tmp_path / "other.safetensors")
    line = ["compile", str(built.archive), "--plan", str(folder / "plan.toml")]
    line += ["--inputs", str(tmp_path / "other.safetensors"), "--target", "onnxruntime-cpu"]
    assert main([*line, "-o", str(other)]) == 0
    assert (other / "program.pt2").read_bytes() == (folder / "program.pt2").read_bytes()
    gates = verify(folder, against=built.archive)
    assert all(gate.passed for gate in gates) and "cache" in {gate.gate for gate in gates}


@pytest.mark.exhaustive
def test_a_program_that_stores_otherwise_fails_its_gate(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(cache, plain, stored, given, front):  # type: ignore[no-untyped-def]
        first = cache.layers[0].kept["key"]
        object.__setattr__(first, "constants", {n: t * 1.02 for n, t in first.constants.items()})
        return judge_cache(cache, plain, stored, given, front)

    monkeypatch.setattr("tokopt.cli.separate_programs.judge_cache", other)
    made = tokopt.compile(built.archive, tmp_path / "x", budget=0.5, kv="int8", target="eager")
    failed = [gate.gate for gate in made.manifest.gates if not gate.passed]
    assert failed == ["cache"]


@pytest.mark.exhaustive
def test_a_limit_of_bytes_leaves_more_rows_in_fewer_bits(built: Built, tmp_path: Path) -> None:
    options = {"budget": Limits(kv=0.25), "method": "stride", "target": "eager"}
    made = tokopt.compile(built.archive, tmp_path / "x", kv="int8", **options)
    assert made.budget.total == 0.5 and made.manifest.budget.total["kv"].predicted == 0.25
    assert made.manifest.budget.requested == {"kv": 0.25}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--kv-bits", "3"), 2, "a cache of 3 bits"),
        (("--kv-bits", "auto{bits=3}"), 2, "auto{bits=N}"),
        (("--kv", "int9"), 2, "no cache format 'int9'"),
        (("--kv", "int8/int4/int8"), 2, "that of keys / of values"),
        (("--kv", "vidkv"), 2, "hard channels is 6"),
    ],
)
def test_formats_that_no_program_stores_are_refused(
    built: Built, tmp_path: Path, options: tuple[str, ...], code: int, message: str, capfd: Capture
) -> None:
    line = ["compile", str(built.archive), "--budget", "0.5", "-o", str(tmp_path / "no")]
    assert main([*line, *options]) == code
    assert message in capfd.readouterr().err and not (tmp_path / "no").exists()


def test_a_model_without_decode_has_no_cache_to_store(archive: Path, tmp_path: Path) -> None:
    line = ["compile", str(archive), "--budget", "0.5", "--kv-bits", "8"]
    assert main([*line, "-o", str(tmp_path / "no")]) == 3


def test_a_plan_without_its_file_says_what_is_missing(
    built: Built, tmp_path: Path, capfd: Capture
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text((built.made.folder / "plan.toml").read_text())
    line = ["compile", str(built.archive), "--plan", str(plan), "-o", str(tmp_path / "no")]
    assert main(line) == 2
    assert CACHE in capfd.readouterr().err


@pytest.mark.exhaustive
def test_prompts_padded_in_front_are_gone_on_with_in_few_bits(tmp_path: Path) -> None:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    model.save_pretrained(tmp_path / "model")
    options = ["--decode", "--padding", "--dynamic", "batch,length", "-o", str(tmp_path / "a.pt2")]
    assert main(["export", str(tmp_path / "model"), *options]) == 0
    line = ["compile", str(tmp_path / "a.pt2"), "--budget", "0.25", "--kv-bits", "8", "--json"]
    line += ["--target", "onnxruntime-cpu"]
    assert main([*line, "-o", str(tmp_path / "built")]) == 0
    manifest = read_manifest(tmp_path / "built")
    assert json.loads((tmp_path / "built" / "manifest.json").read_text())["cache"]
    assert manifest.budget.total["kv"].predicted == 0.125
    graph = onnx.load(tmp_path / "built" / "model-decode.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("GroupQueryAttention") == 2 and "Attention" not in operators
    _gone_on_with(tmp_path, padded(7, (0, 3)), 8)


def _gone_on_with(place: Path, asked: dict[str, Tensor], steps: int) -> None:
    """Compare with programs of all bits between which INT8 rows are stored and read back here."""
    plan = place / "full.toml"
    plan.write_text((place / "built" / "plan.toml").read_text().partition("\n[[cache]]")[0])
    tokopt.compile(place / "a.pt2", place / "full", plan=plan, target="eager")
    model, plain = tokopt.load(place / "built"), tokopt.load(place / "full")
    constants = load_file(place / "built" / CACHE)

    def stored(number: int, rows: Tensor) -> Tensor:
        side = "key" if number % 2 == 0 else "value"
        own = {n: constants[f"{number // 2}.{side}.{n}"] for n in ("centre", "scale")}
        return Int8().dequantize(side, Int8().quantize(side, rows, own, None), own)

    first, decode = plain(asked), plain.program("decode")
    caches = [stored(i, first[f"past_{i}"]) for i in range(4)]
    padding = (asked["attention_mask"] == 0).sum(1, keepdim=True)
    mask = (torch.arange(caches[0].shape[2]) >= padding).long()
    logits, made = first["logits"][:, -1], []
    for step in range(steps):
        made.append(logits.argmax(-1))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        where = torch.full((len(mask), 1), asked["input_ids"].shape[1] + step)
        past = {f"past_{i}": rows for i, rows in enumerate(caches)}
        token = made[-1][:, None]
        ran = decode(input_ids=token, position_ids=where, attention_mask=mask, **past)
        new = [ran[f"present_{i}"][:, :, -1:] for i in range(4)]
        caches = [torch.cat([rows, stored(i, new[i])], 2) for i, rows in enumerate(caches)]
        logits = ran["logits"][:, -1]
    got = model.generate(asked, max_new_tokens=steps, stop=())
    assert torch.equal(got, torch.stack(made, 1))
    alone = {name: value[1:] for name, value in asked.items()}
    short = {name: alone[name][:, padding[1] :] for name in ("input_ids", "attention_mask")}
    assert torch.equal(got[1:], model.generate({**alone, **short}, max_new_tokens=steps, stop=()))


def test_auto_takes_bits_from_the_layers_that_lose_least(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    separate = Separate.of(load(built.archive))
    every = separate.inputs(None)
    decoding = separate.decoding(analyse(separate.joined))
    names = [name for name, bits in cache_bits.STEPS.items() if bits >= 4]
    both = {n: measured(separate, decoding, every, {"key": n, "value": n}) for n in names}
    trial = cache_bits._Trial(separate, both, every)

    def formats(most: float) -> list[str]:
        monkeypatch.setattr(cache_bits, "MOST", most)
        bits = cache_bits.bit_choices(separate, decoding, every)
        found = bits.caches[bits.usual].entries
        assert [one.layer for one in found] == [0, 1] and len(bits.caches) == bits.usual + 1
        assert all(one.key == one.value for one in found)
        return [one.key for one in found]

    def lost(*names: str) -> float:
        return trial.lost({(n, side): name for n, name in enumerate(names) for side in OTHER})

    assert formats(-1) == ["half"] * 2 and formats(1e9) == ["int4"] * 2
    eight, four = lost("int8", "int8"), lost("int4", "int4")
    mixed = {lost("int4", "int8"): ["int4", "int8"], lost("int8", "int4"): ["int8", "int4"]}
    least = min(mixed)
    assert 0 < eight < least < four
    assert formats((least + min(four, max(mixed))) / 2) == mixed[least]


def test_auto_goes_on_to_two_bits_where_asked_and_where_that_saves_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By hand: KIVI's 3 bits with 31 rows in 16 are fewer than INT4's 4 from 404 rows on."""
    sizes = replace(SIZES, width=128, longest=640)
    save(Program(parts(sizes, dynamic=True)), tmp_path / "wide.pt2")
    separate = Separate.of(load(tmp_path / "wide.pt2"))
    decoding = separate.decoding(analyse(separate.joined))
    monkeypatch.setattr(cache_bits, "MOST", 1e9)

    def choices(rows: int, auto: Auto) -> cache_bits.BitChoices:
        pixels, ids = inputs(sizes, 1, rows - sizes.visual, 5)
        token, place = ids[:, :1].clone(), torch.full((1, 1), rows - sizes.visual)
        given = {"pixels": pixels, "input_ids": ids, "decode_input_ids": token, "positions": place}
        return cache_bits.bit_choices(separate, decoding, separate.inputs(given), auto)

    def found(rows: int, auto: Auto) -> set[str]:
        bits = choices(rows, auto)
        return {name for e in bits.caches[bits.usual].entries for name in (e.key, e.value)}

    further = choices(404, Auto(2, further=True))  # a search may take it, and starts without
    last = further.caches[-1].entries[-1]
    assert last.key == last.value == "kivi{window=0}" and further.usual == len(further.caches) - 3
    assert found(404, Auto(2)) == {"kivi{window=0}"}
    assert found(403, Auto(2)) == found(404, Auto()) == found(404, Auto(2, 0.9)) == {"int4"}


def test_auto_chooses_for_keys_and_values_apart_and_each_choice_has_fewer_bits(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side goes on at a time, first the one that loses least: tried here one by one."""
    separate = Separate.of(load(built.archive))
    every = separate.inputs(None)
    decoding = separate.decoding(analyse(separate.joined))
    monkeypatch.setattr(cache_bits, "MOST", -1)
    bits = cache_bits.bit_choices(separate, decoding, every, Auto(8, apart=True, further=True))
    assert bits.usual == 0 and len(bits.caches) == 5
    cost = [sum(one.bytes_per_token for one in cache.records) for cache in bits.caches]
    assert cost == [8 * SIZES.width - n * SIZES.width for n in range(5)]
    names = [[(one.key, one.value) for one in cache.entries] for cache in bits.caches]
    both = {
        n: measured(separate, decoding, every, {"key": n, "value": n}) for n in ("half", "int8")
    }
    trial = cache_bits._Trial(separate, both, every)
    half = {(n, side): "half" for n in range(2) for side in OTHER}
    least = min(half, key=lambda part: trial.lost({**half, part: "int8"}))
    found = {(n, s): getattr(bits.caches[1].entries[n], s) for n, s in half}
    assert found == {**half, least: "int8"} and names[4] == [("int8", "int8")] * 2


@pytest.mark.exhaustive
def test_auto_is_asked_for_like_a_number_of_bits(built: Built, tmp_path: Path) -> None:
    line = ["compile", str(built.archive), "--budget", "0.5", "--kv-bits", "auto"]
    assert main([*line, "--target", "eager", "-o", str(tmp_path / "x")]) == 0
    cache = read_manifest(tmp_path / "x").cache
    assert len(cache) == 2 and {one.key for one in cache} <= {"half", "int8", "int4"}
