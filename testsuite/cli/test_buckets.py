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
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, plan
from testsuite.passes.padded_llava import IMAGE_TOKEN

import tokopt
from tokopt.cli.buckets import judge_padding, padding_of, pieces_of
from tokopt.cli.compiler import output_names
from tokopt.cli.main import main
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.placeholders import Placeholders, find_placeholders
from tokopt.passes.decompose import decompose
from tokopt.passes.validate import Checked, Verdict, run_program
from tokopt.targets.manifest import read_manifest
from tokopt.targets.registry import find

pytestmark = pytest.mark.slow

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]
PLAN = "vision:end vtc_cls 18, decoder:1 fastv 6"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("buckets") / "padded.pt2"
    torch.export.save(padded_llava.exported("sdpa"), path)
    return path


@pytest.fixture(scope="module")
def artifact(original: Path) -> Path:
    folder, file = original.with_name("artifact"), original.with_name("plan.toml")
    file.write_text(plan(PLAN).to_toml())
    line = ["compile", str(original), "--plan", str(file), "--prompt-buckets", "64,48"]
    assert main([*line, "--target", "eager", "-o", str(folder)]) == 0
    return folder


@functools.cache
def free(family: str, text: str) -> Checked:
    """Return the rewritten program whose prompt is free."""
    return checked(analysed(family), plan(text))


def names_of(done: Checked) -> list[str]:
    return output_names(done.facts.exported, len(done.plan.stages))


def test_there_is_a_static_program_for_each_bucket_and_every_gate_passed(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest.padding is not None and manifest.padding.buckets == (48, 64)
    assert {one.name: one.value for one in manifest.padding.inputs} == {
        "input_ids": 0,
        "attention_mask": 0,
    }
    gates = [gate.gate for gate in manifest.gates]
    assert gates[4:] == ["padding", "padding", "target", "target"]
    assert all(gate.passed for gate in manifest.gates)
    assert "49 rows padded to 64" in manifest.gates[5].compared
    saved = load(artifact / "program.pt2").graphs
    assert [*saved] == ["model", "model-p64"]
    for program, length in zip(saved.values(), (48, 64), strict=True):
        ids = program.graph.find_nodes(op="placeholder")[-2].meta["val"]
        assert ids.shape[1] == length and isinstance(ids.shape[1], int)
    taken = {spec.name: spec.shape for spec in manifest.signature.inputs}
    assert taken["input_ids"] == ("batch", "input_ids_dim1")  # the caller's prompt is free


def test_any_shorter_prompt_gives_what_the_free_program_gives(
    artifact: Path, original: Path
) -> None:
    model, done = tokopt.load(artifact), made(original)
    program, names = decompose(done.applied.exported), names_of(done)
    batches = [padded_llava.batch(side, 3) for side in ("left", "right")]
    for inputs in [*padded_llava.items(3), *batches]:
        wanted = dict(zip(names, run_program(program, inputs), strict=True))
        got = model(inputs, trace=True)
        assert got.keys() == wanted.keys()
        for name in names:
            torch.testing.assert_close(got[name], wanted[name], atol=1e-4, rtol=1e-4)
        for stage in (0, 1):
            assert torch.equal(got[f"trace.{stage}.kept"], wanted[f"trace.{stage}.kept"])


@functools.cache
def made(original: Path) -> Checked:
    from tokopt.ir.facts import analyse
    from tokopt.passes.apply_plan import apply_plan
    from tokopt.passes.methods.registry import find_method
    from tokopt.passes.normalize import normalize

    facts = analyse(normalize(padded_llava.exported("sdpa")))
    chosen = plan(PLAN)
    return Checked(facts, chosen, apply_plan(facts.exported, chosen, find_method), find_method)


def test_run_and_verify_and_inspect_know_the_buckets(
    artifact: Path, original: Path, tmp_path: Path, written: Written, capfd: Capture
) -> None:
    first = padded_llava.items()[1]
    file = str(tmp_path / "out.safetensors")
    assert main(["run", str(artifact), "--inputs", written(**first), "--trace", "-o", file]) == 0
    outputs, length = load_file(file), first["input_ids"].shape[1]
    assert outputs["output"].shape[:2] == (1, length)
    assert outputs["trace.1.kept"].shape == (1, length - padded_llava.VISUAL + 6)
    long = {name: value.repeat(1, 2) for name, value in first.items() if value.dim() == 2}
    capfd.readouterr()
    line = ["run", str(artifact), "--inputs", written("long", **first | long)]
    assert main(line) == 2
    err = capfd.readouterr().err
    assert "a prompt of 88 rows" in err and "at most 64" in err
    assert main(["verify", str(artifact), "--against", str(original), "--json"]) == 0
    gates = [gate["gate"] for gate in json.loads(capfd.readouterr().out)["gates"]]
    assert gates[5:] == ["padding", "padding", "target", "target"]
    assert main(["inspect", str(artifact)]) == 0
    assert "model-p64" in capfd.readouterr().out


def test_a_prompt_that_would_end_with_an_image_in_front_of_padding_is_refused(
    artifact: Path,
) -> None:
    one = padded_llava.items()[0]
    ids = one["input_ids"]
    last = torch.cat([ids[ids != IMAGE_TOKEN], ids[ids == IMAGE_TOKEN]]).unsqueeze(0)
    with pytest.raises(InputError, match="ends with an image placeholder and is padded"):
        tokopt.load(artifact)(one | {"input_ids": last})


def test_padding_that_nothing_masks_is_caught(original: Path) -> None:
    done = made(original)
    failed = {v.gate for v in judged(done, (64,), fill=1) if not v.passed}
    assert failed >= {"padding"} or failed >= {"padding oracle"}
    assert all(v.passed for v in judged(done, (64,)))


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
    with pytest.raises(UnsupportedError, match="no input says which rows .* decoder:1 reads") as no:
        judged(free("llava_dynamic", "decoder:1 fastv 6"), (64,))
    assert "--padding" in str(no.value.hint)
    assert all(v.passed for v in judged(free("llava_dynamic", "vision:end vtc_cls 18"), (64,)))


def test_onnx_runtime_runs_a_static_program(original: Path, tmp_path: Path) -> None:
    done = made(original)
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


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ((64, 64), "64, 64"),
        ((), "none"),
        ((20,), "prompt bucket 20"),
        ((1000,), "prompt bucket 1000"),
        ((40,), "cannot be verified"),
    ],
)
def test_buckets_that_are_none_are_refused(
    buckets: tuple[int, ...], said: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        tokopt.compile(
            original, tmp_path / "x", plan=plan("vision:end stride 18"), prompt_buckets=buckets
        )
    assert not (tmp_path / "x").exists()


def test_a_program_whose_prompt_is_constant_has_no_buckets() -> None:
    done = free("llava", "vision:end stride 18")
    final = decompose(done.applied.exported)
    with pytest.raises(UnsupportedError, match="the prompt length is not free"):
        padding_of(done, final, names_of(done), (64,), list[Placeholders]())


def test_each_budget_has_every_bucket(original: Path, tmp_path: Path) -> None:
    compiled = tokopt.compile(
        original,
        tmp_path / "x",
        budget=(0.5, 0.25),
        method="stride",
        prompt_buckets=(48, 64),
        target="eager",
    )
    assert compiled.ok
    saved = load(compiled.folder / "program.pt2").graphs
    assert [*saved] == ["model", "model-p64", "model-0.25", "model-0.25-p64"]
    one, model = padded_llava.items()[1], tokopt.load(compiled.folder)
    assert model(one)["output"].shape == model(one, budget=0.25)["output"].shape
