"""A tower that reuses rows, as an artifact: a film through it, beside the eager model with hooks.

The eager twins compute every row and replace those that are reused; about 15 s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from testsuite.zoo import clip_vision, siglip_vision
from testsuite.zoo.sample import Sample
from torch import Tensor, nn

import tokopt
from tokopt.cli.main import main
from tokopt.cli.verifier import verify
from tokopt.ir.errors import TokoptError
from tokopt.targets.manifest import read_manifest

BUILDERS = {"siglip": (siglip_vision.build, 0), "clip": (clip_vision.build, 1)}
EVERY, KEEP = 3, 9


class Cacher:
    """STC's cacher on a model of transformers: modules run on all rows, hooks replace some."""

    def __init__(self, model: nn.Module, front: int) -> None:
        self.front, self.call, self.kept, self.anew = front, 0, dict[str, Tensor](), Tensor()
        for number, layer in enumerate(model.encoder.layers):  # type: ignore[union-attr]
            attention = layer.self_attn
            attention.k_proj.register_forward_hook(partial(self.choose, f"{number}.k"))
            for name, module in (
                ("v", attention.v_proj),
                ("a", attention.out_proj),
                ("m", layer.mlp),
            ):
                module.register_forward_hook(partial(self.replace, f"{number}.{name}"))

    @property
    def is_reference(self) -> bool:
        return self.call % EVERY == 0

    def choose(self, name: str, module: nn.Module, given: object, keys: Tensor) -> None:
        if self.is_reference:
            self.kept[name] = keys.clone()
            return
        alike = torch.cosine_similarity(keys[0], self.kept[name][0], dim=-1)[self.front :]
        lowest = sorted(range(len(alike)), key=lambda row: float(alike[row]))[:KEEP]
        self.anew = torch.tensor([*range(self.front), *(row + self.front for row in lowest)])

    def replace(self, name: str, module: nn.Module, given: object, value: Tensor) -> Tensor:
        if self.is_reference:
            self.kept[name] = value.clone()
            return value
        whole = self.kept[name].clone()
        whole[0, self.anew] = value[0, self.anew]
        return whole


@pytest.fixture(scope="module", params=BUILDERS)
def family(request: pytest.FixtureRequest) -> tuple[str, Sample, int]:
    build, front = BUILDERS[request.param]
    return request.param, build(), front


@pytest.fixture(scope="module")
def built(family: tuple[str, Sample, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family[0]) / "tower.pt2"
    torch.export.save(family[1].exported, path)
    asked = f"stc_cacher{{every={EVERY}}}"
    done = tokopt.compile(path, path.with_name("built"), budget=1.0, attention=asked)
    assert done.ok and done.plan.stages == ()
    return done.folder


@pytest.fixture
def film(family: tuple[str, Sample, int]) -> list[Tensor]:
    """A picture in which a square moves, and a little noise."""
    (pixels,) = family[1].inputs
    noise, frames = torch.Generator().manual_seed(5), []
    for number in range(2 * EVERY + 1):
        frame = pixels + 0.02 * torch.randn(pixels.shape, generator=noise)
        frame[..., 8 : 8 + 16, 6 * number : 6 * number + 10] += 2.0
        frames.append(frame)
    return frames


def test_a_film_gives_what_the_eager_model_gives_whose_rows_are_replaced(
    family: tuple[str, Sample, int], built: Path, film: list[Tensor]
) -> None:
    _, sample, front = family
    (name,) = sample.exported.graph_signature.user_inputs
    model = tokopt.load(built)
    whole = [sample.eager(frame) for frame in film]
    cacher = Cacher(sample.eager.model, front)  # type: ignore[arg-type]
    apart = []
    for number, frame in enumerate(film):
        cacher.call = number
        (found,) = model({str(name): frame}).values()
        torch.testing.assert_close(found, sample.eager(frame), rtol=1e-4, atol=1e-4)
        apart.append(float((found - whole[number]).abs().max()))
        assert model.remembered["reuse_age"].tolist() == [(number + 1) % EVERY]
    updates = [gap for number, gap in enumerate(apart) if number % EVERY]
    assert max(apart[::EVERY]) < 1e-4 < 1e-2 < min(updates)  # what is reused is not the same


def test_a_caller_or_a_new_stream_asks_for_a_reference(
    family: tuple[str, Sample, int], built: Path, film: list[Tensor]
) -> None:
    name = str(family[1].exported.graph_signature.user_inputs[0])
    model = tokopt.load(built)
    first, second = ((model({name: frame}, trace=True)) for frame in film[:2])
    assert not [key for key in first if key.startswith("trace.")]  # every row was computed
    assert second["trace.0.kept"].shape == (1, KEEP + family[2])
    assert set(model({name: film[2]})) == {name for name in first if "next" not in name}
    model({name: film[2]})
    cut = model({name: film[3]}, reuse_age=torch.zeros(1))
    model.reset()
    again = model({name: film[3]})
    assert all(torch.equal(cut[key], again[key]) for key in again)


def test_the_manifest_tells_the_other_program_and_the_work(built: Path) -> None:
    manifest = read_manifest(built)
    refresh = manifest.refresh
    assert refresh is not None and (built / f"model{refresh.part}.onnx").is_file()
    assert (refresh.age, refresh.every) == ("reuse_age", EVERY)
    states = {memory.input for memory in manifest.memory}
    assert states <= {spec.name for spec in manifest.signature.inputs}
    given = {memory.output for memory in manifest.memory}
    assert given <= {spec.name for spec in refresh.signature.outputs}
    amount = manifest.budget.total["flops"].predicted
    assert manifest.budget.total["tokens"].predicted == 1.0
    assert amount is not None and 0.4 < amount < 0.7


def test_verify_judges_both_programs(built: Path) -> None:
    archive = built.with_name("tower.pt2")
    gates = verify(built, against=archive)
    assert all(one.passed for one in gates)
    told = [one.gate for one in gates]
    assert told.count("target") == told.count("program") == 2
    refresh = read_manifest(built).refresh
    assert refresh is not None
    damaged = built / f"model{refresh.part}.onnx"
    kept = damaged.read_bytes()
    damaged.write_bytes(kept + b"x")
    assert [one.passed for one in verify(built, against=archive)] == [False]
    damaged.write_bytes(kept)


def refused(compile: Callable[[], Any]) -> str:
    with pytest.raises(TokoptError) as error:
        compile()
    return str(error.value)


def test_what_a_film_cannot_go_through_is_refused(built: Path, tmp_path: Path) -> None:
    archive = built.with_name("tower.pt2")
    compile = partial(tokopt.compile, archive, tmp_path / "x")
    beside = partial(compile, budget=0.5, attention="stc_cacher")
    assert "keeps every row of vision" in refused(beside)
    assert "share = 2" in refused(partial(compile, budget=1.0, attention="stc_cacher{share=2}"))


def test_a_pass_that_gives_one_program_refuses(built: Path, tmp_path: Path) -> None:
    source, plan = built.with_name("tower.pt2"), built / "plan.toml"
    line = ["opt", str(source), "-p", f"normalize,apply-plan{{file={plan}}}"]
    assert main([*line, "-o", str(tmp_path / "x.pt2")]) == 3
