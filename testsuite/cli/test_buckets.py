"""Prompt buckets: programs of constant prompt length compute what the free program computes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from testsuite.passes import padded_llava
from testsuite.passes.analysed import analysed as zoo
from testsuite.passes.families import plan
from testsuite.passes.padded_llava import IMAGE_TOKEN
from testsuite.zoo import llava
from torch.export import ExportedProgram

import tokopt
from tokopt.cli.buckets import (
    checked_buckets,
    fitting,
    judge_padding,
    padding_of,
    pieces_of,
    refuse_buckets,
)
from tokopt.cli.main import main
from tokopt.cli.one_program import output_names
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.load import load
from tokopt.ir.placeholders import find_placeholders
from tokopt.ir.prompt import find_prompt
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, Verdict, run_program
from tokopt.targets.manifest import read_manifest
from tokopt.targets.padding import Filled, Padding
from tokopt.targets.registry import find

pytestmark = pytest.mark.slow

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]
LAYERS, PLAN = 2, "decoder:1 fastv 18"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("buckets") / "padded.pt2"
    torch.export.save(padded_llava.exported("sdpa", layers=LAYERS), path)
    return path


@pytest.fixture(scope="module")
def artifact(original: Path) -> Path:
    """Return an artifact of two buckets; the gates of its free program are left to others."""
    folder = original.with_name("artifact")
    line = ["compile", str(original), "--budget", "0.75", "--method", "fastv"]
    line += ["--prompt-buckets", "64,48", "--target", "eager", "-o", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokopt.cli.compiler.validate", lambda *given: [])
        assert main(line) == 0
    return folder


def analysed(exported: ExportedProgram, text: str) -> Checked:
    facts, chosen = analyse(normalize(exported)), plan(text)
    return Checked(facts, chosen, apply_plan(facts.exported, chosen, find_method), find_method)


@functools.cache
def free() -> Checked:
    """Return the rewritten program whose prompt is free, as the artifact has it."""
    return analysed(padded_llava.exported("sdpa", layers=LAYERS), PLAN)


def names_of(done: Checked) -> list[str]:
    return output_names(done.facts.exported, len(done.plan.stages))


@pytest.mark.exhaustive
def test_there_is_a_static_program_for_each_bucket_and_every_gate_passed(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.padding is not None and manifest.padding.buckets == (48, 64)
    assert {one.name: one.value for one in manifest.padding.inputs} == {
        "input_ids": 0,
        "attention_mask": 0,
    }
    gates = [gate.gate for gate in manifest.gates]
    assert gates == ["padding", "padding", "target", "target"]
    assert all(gate.passed for gate in manifest.gates)
    assert "49 rows padded to 64" in manifest.gates[1].compared
    saved = load(artifact / "program.pt2").graphs
    assert [*saved] == ["model", "model-p64"]
    for program, length in zip(saved.values(), (48, 64), strict=True):
        ids = program.graph.find_nodes(op="placeholder")[-2].meta["val"]
        assert ids.shape[1] == length and isinstance(ids.shape[1], int)
    taken = {spec.name: spec.shape for spec in manifest.signature.inputs}
    assert taken["input_ids"] == ("batch", "input_ids_dim1")  # the caller's prompt is free


@pytest.mark.exhaustive
def test_any_shorter_prompt_gives_what_the_free_program_gives(
    artifact: Path,
) -> None:
    model, done = tokopt.load(artifact), free()
    program, names = decompose(done.applied.exported), names_of(done)
    batches = [padded_llava.batch(side, 3) for side in ("left", "right")]
    for inputs in [*padded_llava.items(3), *batches]:
        wanted = dict(zip(names, run_program(program, inputs), strict=True))
        got = model(inputs, trace=True)
        assert got.keys() == wanted.keys()
        for name in names:
            torch.testing.assert_close(got[name], wanted[name], atol=1e-4, rtol=1e-4)
        assert torch.equal(got["trace.0.kept"], wanted["trace.0.kept"])


@pytest.mark.exhaustive
def test_run_and_verify_and_inspect_know_the_buckets(
    artifact: Path,
    original: Path,
    tmp_path: Path,
    written: Written,
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = padded_llava.items()[1]
    file = str(tmp_path / "out.safetensors")
    assert main(["run", str(artifact), "--inputs", written(**first), "--trace", "-o", file]) == 0
    outputs, length = load_file(file), first["input_ids"].shape[1]
    assert outputs["output"].shape[:2] == (1, length)
    assert outputs["trace.0.kept"].shape == (1, length - padded_llava.VISUAL + 18)
    words = torch.ones(1, 44, dtype=torch.int64)
    long = {n: torch.cat([v, words], 1) for n, v in first.items() if v.dim() == 2}
    capfd.readouterr()
    line = ["run", str(artifact), "--inputs", written("long", **first | long)]
    assert main(line) == 2
    err = capfd.readouterr().err
    assert "a prompt of 88 rows" in err and "at most 64" in err
    monkeypatch.setattr("tokopt.cli.verifier.validate", lambda *given: [])
    assert main(["verify", str(artifact), "--against", str(original), "--json"]) == 0
    gates = [gate["gate"] for gate in json.loads(capfd.readouterr().out)["gates"]]
    assert gates == ["files", "padding", "padding", "target", "target"]
    assert main(["inspect", str(artifact)]) == 0
    assert "model-p64" in capfd.readouterr().out


@pytest.mark.exhaustive
def test_a_prompt_that_would_end_with_an_image_in_front_of_padding_is_refused(
    artifact: Path,
) -> None:
    one = padded_llava.items()[0]
    ids = one["input_ids"]
    last = torch.cat([ids[ids != IMAGE_TOKEN], ids[ids == IMAGE_TOKEN]]).unsqueeze(0)
    with pytest.raises(InputError, match="ends with an image placeholder and is padded"):
        tokopt.load(artifact)(one | {"input_ids": last})


def test_padding_that_nothing_masks_is_caught() -> None:
    assert any(not v.passed for v in judged(free(), (64,), fill=1))


def judged(done: Checked, buckets: tuple[int, ...], fill: int = 0) -> list[Verdict]:
    """Return the padding gates' verdicts, padded rows of the mask being ``fill``."""
    final, names = decompose(done.applied.exported), names_of(done)
    wanted = find_placeholders(done.facts)
    padding = padding_of(done, final, names, buckets, wanted)
    inputs = tuple(
        replace(one, value=fill if one.name == "attention_mask" else one.value)
        for one in padding.inputs
    )
    padding = replace(padding, inputs=inputs)
    given = padded_llava.items(1)[0]
    if "attention_mask" not in {str(n) for n in done.facts.exported.graph_signature.user_inputs}:
        given.pop("attention_mask")
    given = {name: torch.cat([value, value]) for name, value in given.items()}
    pieces = pieces_of(final, padding, "", done, given, wanted)
    return list(judge_padding(done, final, names, padding, pieces))


def test_without_a_mask_only_a_tower_may_be_cut() -> None:
    done = analysed(llava.build(dynamic=True, layers=2).exported, "vision:end vtc_cls 18")
    assert all(verdict.passed for verdict in judged(done, (64,)))
    cut = replace(done, plan=plan(f"{done.facts.consumer.sites[0].name} stride 6"))
    with pytest.raises(
        UnsupportedError, match=r"no input says which rows .* reads the last row"
    ) as refusal:
        judged(cut, (64,))
    assert "--padding" in str(refusal.value.hint)


def test_onnx_runtime_runs_a_static_program(tmp_path: Path) -> None:
    done = free()
    final, names = decompose(done.applied.exported), names_of(done)
    wanted = find_placeholders(done.facts)
    padding = padding_of(done, final, names, (64,), wanted)
    (piece,) = pieces_of(final, padding, "", done, padded_llava.batch("right"), wanted)
    target = find("onnxruntime-cpu")
    target.lower(piece.program, tmp_path, names)
    got = target.open(tmp_path)(piece.inputs)
    expected = dict(zip(names, run_program(piece.program, piece.inputs), strict=True))
    for name in names:
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bucket", [20, 1000])
def test_a_bucket_that_no_prompt_can_have_is_refused(bucket: int) -> None:
    with pytest.raises(InputError, match=f"prompt bucket {bucket}"):
        judged(free(), (bucket,))


def test_a_bucket_too_short_for_the_inputs_to_verify_it_is_refused() -> None:
    """Text behind the image is cut off, the image is not: 6 words, 36 rows, 1 word are needed."""
    one, wanted = padded_llava.items()[1], find_placeholders(free().facts)
    padding = Padding((43,), (Filled("input_ids", 1, 0), Filled("attention_mask", 1, 0)), ())
    assert fitting(one, padding, 43, wanted)["input_ids"].shape == (1, 43)
    assert fitting(one, padding, 60, wanted)["input_ids"].shape == (1, 44)
    with pytest.raises(InputError, match=r"42 cannot be verified: .* 44 rows, .* the first 43"):
        fitting(one, padding, 42, wanted)


def test_buckets_are_asked_for_once_each() -> None:
    assert checked_buckets((64, 48)) == (48, 64) and checked_buckets(None) == ()
    for wrong in ((64, 64), (), (0, 4)):
        with pytest.raises(InputError, match="prompt buckets"):
            checked_buckets(wrong)


def test_last_rows_and_a_constant_prompt_have_no_buckets() -> None:
    done = free()
    final, wanted = decompose(done.applied.exported), find_placeholders(done.facts)
    last = replace(done, plan=replace(done.plan, outputs="last"))
    with pytest.raises(InputError, match="outputs = last"):
        padding_of(last, final, names_of(done), (64,), wanted)
    with pytest.raises(UnsupportedError, match="prompt buckets for several programs"):
        refuse_buckets((64,), "model.pt2")
    with pytest.raises(UnsupportedError, match="the prompt length is not free"):
        find_prompt(zoo("llava_short").facts)


@pytest.mark.exhaustive
@pytest.mark.needs_cxx
@pytest.mark.skipif(find("aotinductor").available() is not None, reason="no C++ compiler")
def test_machine_code_of_each_bucket_passes_its_gates(original: Path, tmp_path: Path) -> None:
    buckets = {"prompt_buckets": (48, 52), "target": "aotinductor"}
    made = tokopt.compile(original, tmp_path / "built", budget=0.75, method="fastv", **buckets)
    assert made.ok and [gate.gate for gate in made.manifest.gates].count("target") == 2
    names = {path.name for path in made.folder.glob("*.aoti.pt2")}
    assert names == {"model.aoti.pt2", "model-p52.aoti.pt2"}
