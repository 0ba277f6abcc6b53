"""Sparse decode: compiled, told, generated with, verified and applied again; refused where not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from testsuite.zoo import llava
from testsuite.zoo.handvlm import Sizes
from testsuite.zoo.handvlm_parts import inputs, parts
from torch import Tensor

import tokopt
from tokopt.cli import sparse_gate
from tokopt.cli.compiled import Compiled
from tokopt.cli.main import main
from tokopt.cli.separate import Separate
from tokopt.cli.sparse_decode import refuse_copies
from tokopt.cli.verifier import verify
from tokopt.ir.cache import Cache
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.passes.sparse_decode.asked import asked_sparse
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.masked import run_sparse
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.targets.base import Runner
from tokopt.targets.long_caches import LongCaches
from tokopt.targets.manifest import read_manifest
from tokopt.targets.programs import CodedCache, Coder
from tokopt.targets.registry import find

SIZES = Sizes(layers=4, tower_layers=1, longest=256)
ASKED = "delta{page=4 pages=6 recent=2 from=48}"
CACHES = [f"cache_{number}" for number in range(8)]
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Built:
    archive: Path
    made: Compiled


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("sparse")
    archive = place / "parts.pt2"
    save(Program(parts(SIZES, dynamic=True)), archive)
    options = {"budget": 1.0, "method": "stride", "target": "onnxruntime-cpu"}
    return Built(archive, tokopt.compile(archive, place / "a", sparse_decode=ASKED, **options))


def prompts(text: int = 9) -> dict[str, Tensor]:
    pixels, ids = inputs(SIZES, 2, text, 2)
    return {"pixels": pixels, "input_ids": ids}


def test_the_manifest_the_plan_and_explain_say_what_is_sparse(built: Built, capfd: Capture) -> None:
    manifest = read_manifest(built.made.folder)
    sparse = manifest.sparse
    assert manifest.status == "ok" and sparse is not None
    assert (sparse.full, sparse.rows, sparse.page, sparse.pages) == ((0,), 48, 4, 6)
    assert "nats from the full step's next token, the paper's" in sparse.note
    gates = [gate.gate for gate in manifest.gates]
    assert gates.count("sparse") == 2 and "sparse identity" in gates
    plan = Plan.from_toml((built.made.folder / "plan.toml").read_text())
    assert plan.decode is not None and plan.decode.select == sparse.select
    assert main(["explain", str(built.made.folder)]) == 0
    assert "decode: delta from 48 rows on: full layers 0;" in capfd.readouterr().out


def test_tokens_are_those_of_the_full_step_with_pages_masked_once_it_is_long(built: Built) -> None:
    """The reference decodes with the original's graph, masked from 48 rows on."""
    asked, separate = prompts(), Separate.of(load(built.archive))
    got = tokopt.load(built.made.folder).generate(asked, max_new_tokens=12, stop=())
    made, dense = masked(separate, built.made, asked, 48), masked(separate, built.made, asked, 999)
    assert torch.equal(got, made)
    assert not torch.equal(made, dense)


def masked(separate: Separate, made: Compiled, asked: dict[str, Tensor], rows: int) -> Tensor:
    model, sparse = tokopt.load(made.folder), made.manifest.sparse
    assert sparse is not None
    first = model(asked)
    groups, pages = Groups(4, sparse.full, sparse.select), Pages(4, 6, 2)
    caches = [first[f"output_{number + 1}"] for number in range(8)]
    logits, tokens = first["output_0"][:, -1], list[Tensor]()
    for step in range(12):
        tokens.append(logits.argmax(-1))
        place = torch.full((2, 1), asked["input_ids"].shape[1] + step)
        given = {"input_ids": tokens[-1][:, None], "positions": place}
        given |= dict(zip(CACHES, caches, strict=True))
        long = caches[0].shape[2] + 1 >= rows
        decode = separate.program.graphs["decode"]
        ran = run_sparse(decode, CACHES, groups if long else None, pages, given).outputs
        caches = [torch.cat([c, new], 2) for c, new in zip(caches, ran[1:], strict=True)]
        logits = ran[0][:, -1]
    return torch.stack(tokens, 1)


def test_which_program_runs_goes_by_the_length_of_the_caches(built: Built) -> None:
    how, ran = built.made.manifest.decoding, list[str]()
    assert how is not None
    (decode,) = (one for one in built.made.manifest.programs if one.name == "decode")

    def opened(part: str) -> Runner:
        return lambda step: ran.append(part) or {}

    runner = LongCaches(how, decode, 48, "sparse", opened)
    for rows in (46, 47, 48):
        runner({name: torch.zeros(1, 4, rows, 12) for name in CACHES})
    coded = tuple(
        CodedCache(name, {"codes": f"{name}_codes"}, {f"{name}_codes": 8}) for name in CACHES
    )
    coder = Coder("coder", "-coder", decode.signature, unit=8, caches=coded)
    runner = LongCaches(how, replace(decode, coders=(coder,)), 48, "sparse", opened)
    for rows in (30, 31):  # and 16 rows that are coded
        step = {name: torch.zeros(1, 4, rows, 12) for name in CACHES}
        runner({**step, **{f"{name}_codes": torch.zeros(1, 4, 2, 8) for name in CACHES}})
    assert ran == ["-decode", "sparse", "sparse", "-decode", "sparse"]


@pytest.mark.exhaustive
def test_the_plan_makes_the_same_programs_again_and_they_verify(
    built: Built, tmp_path: Path
) -> None:
    folder = built.made.folder
    line = ["compile", str(built.archive), "--plan", str(folder / "plan.toml")]
    assert main([*line, "--target", "onnxruntime-cpu", "-o", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "program.pt2"
    assert again.read_bytes() == (folder / "program.pt2").read_bytes()
    gates = verify(folder, against=built.archive)
    assert all(gate.passed for gate in gates)
    assert [gate.gate for gate in gates].count("sparse") == 2


def test_the_gate_runs_on_caches_that_are_long_enough_to_drop_pages() -> None:
    rows = torch.arange(10.0).reshape(1, 1, 5, 2) + 1
    long = sparse_gate._repeated(rows, 2, 12, 0.5)
    assert long.shape == (1, 1, 12, 2)
    assert torch.equal(long[:, :, -5:], rows) and torch.equal(long[:, :, 2:7], rows / 2)


@pytest.mark.parametrize("kv", ["int8", "int8/int4"])
@pytest.mark.exhaustive
def test_a_cache_of_codes_is_sparse_too(built: Built, tmp_path: Path, kv: str) -> None:
    options = {"budget": 0.5, "method": "stride", "target": "onnxruntime-cpu", "kv": kv}
    made = tokopt.compile(built.archive, tmp_path / "kv", sparse_decode=ASKED, **options)
    assert made.ok
    tokens = tokopt.load(made.folder).generate(prompts(), max_new_tokens=40, stop=())
    assert tokens.shape == (2, 40)


def test_what_cannot_be_is_refused(built: Built, tmp_path: Path) -> None:
    options = {"budget": 1.0, "method": "stride", "target": "eager"}
    for asked, said in (
        ("quest", "no sparse decode 'quest'"),
        ("delta{pages=0}", "pages=0"),
        ("delta{heads=2}", "heads=2"),
        ("delta{recent=70}", "recent"),
    ):
        with pytest.raises(InputError, match=said):
            tokopt.compile(built.archive, tmp_path / "x", sparse_decode=asked, **options)
    one = tmp_path / "one.pt2"
    save(Program({"forward": llava.build().exported}), one)
    with pytest.raises(UnsupportedError, match="sparse decode is for archives with one decode"):
        tokopt.compile(one, tmp_path / "x", sparse_decode="delta", **options)
    assert not (tmp_path / "x").exists()


def test_steps_that_would_copy_what_full_ones_write_in_place_are_refused() -> None:
    cache = Cache("past_0", "present_0", 2, whole=True)
    how = Decoding("decode", "ids", "logits", "id", "place", "logits", (cache,))
    rows = replace(how, caches=(replace(cache, whole=False),))
    target, asked = find("onnxruntime-cpu"), asked_sparse("delta")
    if not target.in_place:
        pytest.skip("the installed ONNX Runtime is older than what was tried")
    with pytest.raises(UnsupportedError, match="pays at no length") as caught:
        refuse_copies(target, how, asked)
    assert "delta{from=8192}" in str(caught.value) and caught.value.where is not None
    refuse_copies(target, rows, asked)
    refuse_copies(target, how, asked_sparse("delta{from=8192}"))
    refuse_copies(find("aotinductor"), how, asked)
