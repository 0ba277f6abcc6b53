"""Archives whose decode writes into buffers of a fixed length: compiled, run, refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from testsuite.zoo import gemma3, hf_static, internvl, llava, qwen2_vl
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs
from testsuite.zoo.handvlm_static import static_parts
from torch import Tensor
from torch.export import ExportedProgram

import tokopt
from tokopt.cli.capture_request import Request
from tokopt.cli.main import main
from tokopt.cli.verifier import verify
from tokopt.ir.errors import InputError
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes import buffers
from tokopt.targets.manifest import read_manifest

SIZES = Sizes(layers=3, tower_layers=1)
STEPS = 20
IN_DECODER = """schema = 1

[[stage]]
site = "decoder:1"
method = "stride"
keep = 12
"""
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Archived:
    path: Path
    graphs: dict[str, ExportedProgram]

    def tokens(self, given: dict[str, Tensor]) -> Tensor:
        """Return greedy tokens of the archive's own programs, in their own loop."""
        vision, prefill, decode = (self.graphs[n].module() for n in ("vision", "prefill", "decode"))
        with torch.no_grad():
            logits, *cache = prefill(given["input_ids"], vision(given["pixels"]))
            made, count = [logits[:, -1].argmax(-1)], given["input_ids"].shape[1]
            for place in range(count, count + STEPS - 1):
                logits, *cache = decode(made[-1][:, None], torch.tensor([place]), cache)
                made.append(logits[:, -1].argmax(-1))
        return torch.stack(made, 1)


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Archived:
    path = tmp_path_factory.mktemp("static") / "parts.pt2"
    graphs = static_parts(SIZES)
    save(Program(graphs), path)
    return Archived(path, graphs)


def prompt(seed: int) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 1, 6, seed)
    return {"pixels": pixels, "input_ids": ids}


def test_with_every_row_tokens_are_those_of_the_archives_own_loop(
    archived: Archived, tmp_path: Path
) -> None:
    made = tokopt.compile(archived.path, tmp_path / "a", budget=1.0, target="onnxruntime-cpu")
    gates = [gate for gate in made.manifest.gates if gate.gate == "normal form"]
    assert made.manifest.status == "ok" and len(gates) == 2  # prefill and decode
    model = tokopt.load(made.folder)
    for seed in (5, 6):
        got = model.generate(prompt(seed), max_new_tokens=STEPS, stop=())
        assert torch.equal(got, archived.tokens(prompt(seed)))
    with pytest.raises(InputError, match="overflows"):
        model.generate(prompt(5), max_new_tokens=SIZES.longest, stop=())


def test_inspect_sees_the_decoder(archived: Archived, capfd: Capture) -> None:
    assert main(["inspect", str(archived.path), "--json"]) == 0
    stacks = json.loads(capfd.readouterr().out)["stacks"]
    assert [one["role"] for one in stacks] == ["vision", "decoder"]
    assert any(site["legal"] for site in stacks[1]["sites"])


def test_stages_in_the_decoder_leave_layers_other_lengths(
    archived: Archived, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(IN_DECODER)
    plan = tmp_path / "plan.toml"
    made = tokopt.compile(archived.path, tmp_path / "b", plan=plan, target="eager")
    assert made.manifest.status == "ok"
    model = tokopt.load(made.folder)
    given, (rows,) = prompt(7), [n for n in [SIZES.visual + 6]]
    ran = model(given)
    lengths = [ran[f"output_{i}"].shape[2] for i in range(1, 7)]
    assert lengths == [rows] * 2 + [rows - SIZES.visual + 12] * 4
    assert model.generate(given, max_new_tokens=STEPS, stop=()).shape == (1, STEPS)


def test_reading_rows_that_are_not_written_fails_the_gate(
    archived: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode without mask reads zeros: with all of its rows written it would compute the same."""
    graphs = dict(archived.graphs)
    graphs["decode"] = static_parts(SIZES, masked=False)["decode"]
    save(Program(graphs), tmp_path / "a.pt2")
    made = tokopt.compile(tmp_path / "a.pt2", tmp_path / "b", budget=1.0, target="eager")
    failed = {gate.gate for gate in made.manifest.gates if not gate.passed}
    assert failed == {"normal form"}


def test_a_row_out_of_place_fails_the_gate(
    archived: Archived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = buffers._Growing._grow

    def first(self, write, size):  # type: ignore[no-untyped-def]
        node = grown(self, write, size)
        if size is not None:
            node.args = (node.args[0][::-1], *node.args[1:])
        return node

    monkeypatch.setattr(buffers._Growing, "_grow", first)
    made = tokopt.compile(archived.path, tmp_path / "b", budget=1.0, target="eager")
    assert "normal form" in {gate.gate for gate in made.manifest.gates if not gate.passed}


@pytest.mark.exhaustive
def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    save(Program(static_parts(SIZES, dynamic=True)), tmp_path / "a.pt2")
    made = tokopt.compile(tmp_path / "a.pt2", tmp_path / "b", budget=0.5, target="onnxruntime-cpu")
    model, (pixels, ids) = tokopt.load(made.folder), inputs(SIZES, 3, 6, 4)
    given = {"pixels": pixels, "input_ids": ids}
    got = model.generate(given, max_new_tokens=8, stop=())
    for item in range(3):
        alone = {name: value[item : item + 1] for name, value in given.items()}
        assert torch.equal(got[item : item + 1], model.generate(alone, max_new_tokens=8, stop=()))


@pytest.mark.exhaustive
def test_few_bits_and_verification_go_with_it(archived: Archived, tmp_path: Path) -> None:
    line = ["compile", str(archived.path), "--budget", "0.5", "--kv-bits", "8"]
    assert main([*line, "-o", str(tmp_path / "c")]) == 0
    assert [one.key for one in read_manifest(tmp_path / "c").cache] == ["int8"] * 3
    assert all(gate.passed for gate in verify(tmp_path / "c", against=archived.path))


@pytest.mark.exhaustive
def test_transformers_static_cache_generates_what_transformers_does(tmp_path: Path) -> None:
    model = llava.model(attention="sdpa", seed=0, layers=2)
    save(Program(hf_static.exported(model, Request(prompt_length=48))), tmp_path / "a.pt2")
    options = {"budget": 1.0, "target": "onnxruntime-cpu"}
    made = tokopt.compile(tmp_path / "a.pt2", tmp_path / "b", **options)
    assert made.manifest.status == "ok"
    pixels, ids = llava.inputs(1, 48, 9)
    given = {"pixel_values": pixels, "input_ids": ids}
    got = tokopt.load(made.folder).generate(given, max_new_tokens=12, stop=())
    plain = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    want = model.generate(**given, attention_mask=torch.ones_like(ids), **plain)[:, 48:]
    assert torch.equal(got, want)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [internvl, qwen2_vl, gemma3])
def test_other_models_with_transformers_static_cache(kind: ModuleType, tmp_path: Path) -> None:
    """Positions of three axes; sliding windows; a merge behind a pixel shuffle."""
    graphs = hf_static.exported(kind.model(attention="sdpa", seed=0), kind.REQUEST)
    save(Program(graphs), tmp_path / "a.pt2")
    made = tokopt.compile(tmp_path / "a.pt2", tmp_path / "b", budget=0.5, target="eager")
    assert made.manifest.status == "ok" and made.manifest.decoding is not None
    assert [gate.gate for gate in made.manifest.gates].count("normal form") == 2


def test_a_prompt_whose_rows_are_not_known_is_refused(
    archived: Archived, tmp_path: Path, capfd: Capture
) -> None:
    """A prefill that gives a buffer as it computes it: which rows are written cannot be seen."""
    graphs = {**archived.graphs, "prefill": static_parts(SIZES, padded=True)["prefill"]}
    save(Program(graphs), tmp_path / "a.pt2")
    line = ["compile", str(tmp_path / "a.pt2"), "--budget", "0.5", "-o", str(tmp_path / "no")]
    assert main(line) == 3
    assert "prefill has written is not known" in capfd.readouterr().err
