"""Every method of the library on two families each: the masked oracle, and ONNX Runtime = torch.

Several methods share a program, each at its own site: what is lowered is lowered once.
"""

from __future__ import annotations

import functools
from collections import Counter

import onnx
import pytest
from testsuite.exhaustive import by_default, thinned
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input, failures, lowered, rewritten
from testsuite.targets.test_families_onnxruntime import shapes_of

from tokopt.cli.target_gate import against_target
from tokopt.ir.errors import UnsupportedError
from tokopt.passes.fit import fit
from tokopt.passes.methods import lexrank, received
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.rewrites.registry import REWRITES
from tokopt.passes.rewrites.rewrite import Rewrite

SITES = {
    ("llava", "vision"): (("vision:1", 32), ("vision:2", 29), ("vision:end", 26)),
    ("llava", "decoder"): (("decoder:1", 22), ("decoder:2", 15), ("decoder:3", 8)),
    ("qwen", "decoder"): (("decoder:1", 20), ("decoder:2", 13), ("decoder:3", 6)),
    ("dino", "vision"): (("vision:1", 30), ("vision:2", 24), ("vision:3", 18), ("vision:end", 9)),
    ("clip_text", "text"): (("text:end", 8),),
    ("t5_encoder", "text"): (("text:end", 7),),
}


def legal(family: str, role: str) -> list[Method]:
    """Return the methods that can be placed there, those that read the whole tower last."""
    found = []
    for method in METHODS.values():
        try:
            fit(analysed(family).facts, method, 0.6, role=role)
        except UnsupportedError:
            continue
        found.append(method)
    return sorted(found, key=lambda method: "tower" in method.needs)


@functools.cache
def packs(family: str) -> tuple[str, ...]:
    """Return plans in which every legal method has a site."""
    plans: list[list[str]] = []
    for (name, role), sites in SITES.items():
        methods = legal(family, role) if name == family else []
        for start in range(0, len(methods), len(sites)):
            row = methods[start : start + len(sites)]
            stages = [f"{site} {m.name} {k}" for (site, k), m in zip(sites, row, strict=False)]
            number = start // len(sites)
            reads = any("tower" in method.needs for method in row)
            room = [plan for plan in plans if not any(f" {role}:" in f" {s}" for s in plan)]
            if number < len(room) and not reads:
                room[0].extend(stages)
            else:
                plans.append(stages)
    return tuple(", ".join(stages) for stages in plans)


REWRITING = [
    ("llava", "vision:1>vision:end divprune 9, decoder:1 var tau=2.5 summ=0.05, decoder:2 fastv 9"),
    ("llava", "decoder:1 paint, decoder:3 dart 9"),
    ("qwen", "decoder:1 var tau=2.5 summ=0.05"),
]
"""Attention that is rewritten, and rows that come back."""
PARTS = {"llava": 10, "qwen": 6, "dino": 4, "clip_text": 1, "t5_encoder": 1}
"""In how many cases the plans of a family are run; a family's plans are made when they are run."""
LENGTHS = {36, 37, 45}
"""Rows of the streams of llava: patches, with the class token, patches and text."""
FIRST = {"vision": "vision:2", "decoder": "decoder:2"}
"""By role a site at which all rows are there, and layers to read in front of it."""
DEFAULT = {("llava", 0), ("llava", 4), ("llava", 8), ("clip_text", 0), ("t5_encoder", 0)}
"""What the default run lowers; ``pytest -m exhaustive`` the rest."""
CASES = [(family, number) for family, count in PARTS.items() for number in range(count)]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what is computed block by block have several blocks here, where streams are short."""
    for module in (received, lexrank):
        monkeypatch.setattr(module, "BLOCK", 8)


def passes(family: str, text: str) -> None:
    given = every_input(analysed(family))[0]
    assert failures(rewritten(family, text), [given]) == ""
    done = lowered(family, text)
    verdicts = list(
        against_target(done.target, done.folder, done.checked, done.program, given, done.names)
    )
    assert [v.message for v in verdicts if not v.passed] == []


@pytest.mark.parametrize(("family", "number"), by_default(CASES, DEFAULT.__contains__))
def test_the_oracle_agrees_and_the_file_computes_what_torch_computes(
    family: str, number: int
) -> None:
    for text in packs(family)[number :: PARTS[family]]:
        passes(family, text)


def squares(text: str) -> Counter[str]:
    """Return values of a saved file that hold something for every pair of rows of a stream."""
    model = onnx.load(lowered("llava", text).folder / "model.onnx")
    shapes = shapes_of(onnx.shape_inference.infer_shapes(model)).values()
    return Counter(str(s) for s in shapes if sum(size in LENGTHS for size in s) > 1)


@pytest.mark.parametrize("name", thinned(METHODS, 10))
def test_only_the_methods_that_say_why_write_a_square_into_the_file(name: str) -> None:
    """Each alone at the first site of a whole stream, so that nothing is shorter yet."""
    assert squares("decoder:1 stride 1").total() == 1, "the model's own causal mask"
    method, found = METHODS[name], Counter[str]()
    tried = [(role, site) for role, site in FIRST.items() if placed(method, role)]
    for _, site in tried:
        found += squares(f"{site} {name} 9") - squares(f"{site} stride 9")
    assert bool(found) == bool(method.square), found
    assert tried or method.roles == {"text"}
    whole = str(sorted(LENGTHS)[-1])
    assert not any(shape.count(whole) > 1 for shape in found), "a square of the sequence"


def placed(method: Method, role: str) -> bool:
    try:
        fit(analysed("llava").facts, method, 0.6, role=role)
    except UnsupportedError:
        return False
    return True


@pytest.mark.parametrize(("family", "text"), by_default(REWRITING, REWRITING[:1].__contains__))
def test_rewritten_attention_lowers_as_well(family: str, text: str) -> None:
    passes(family, text)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [n for n, one in REWRITES.items() if isinstance(one, Rewrite)])
def test_no_rewrite_writes_a_square_into_the_file(name: str) -> None:
    """The one there is, the mask at the rows that stay, is the model's own."""
    assert squares(f"decoder:1 {name}, decoder:2 stride 9") <= squares("decoder:2 stride 9")


def test_every_method_is_tried_on_two_families_or_says_what_it_misses() -> None:
    for method in METHODS.values():
        tried = {f for f in PARTS for text in packs(f) if f" {method.name} " in text}
        missing = {"relay", "places", "tower"} & method.needs
        assert len(tried) >= (1 if missing else 2), method.name
