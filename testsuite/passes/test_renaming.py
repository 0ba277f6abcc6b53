"""No name decides anything: the same model under random names gives the same plan and graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from testsuite.ir.scramble import scrambled
from testsuite.passes.analysed import analysed
from testsuite.passes.families import plan
from testsuite.zoo import random_transformer
from testsuite.zoo.random_spec import draw
from torch.export import ExportedProgram

from tokopt.ir.attention import Attention
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.names import Names
from tokopt.ir.text import print_graph
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.default_plan import default_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize

PLANS = {
    "llava": "vision:1 flowcut 18, vision:end vtc_cls 9, decoder:2 fastv 4",
    "handvit": "vision:1 flowcut 18, vision:3 vtc_cls 4",
}


def digest(facts: Facts) -> list[str]:
    """Everything the analysis found, values called by kind and position."""
    names = Names(facts.exported, anonymous=True)
    return [*(_attention(a, names) for a in facts.attention), *_stacks(facts, names)]


def _attention(site: Attention, names: Names) -> str:
    values = (site.node, site.out, site.query, site.key, site.value)
    mask = "none" if site.mask is None else names.node(site.mask)
    rest = f"{mask} {site.scale} {site.causal} {names.length(site.keys.length)}"
    return " ".join(names.node(v) for v in values) + f" {rest}"


def _stacks(facts: Facts, names: Names) -> Iterator[str]:
    for stack in facts.stacks:
        merge = stack.merge
        yield f"{stack.role} {stack.protected} {stack.relay} {names.length(stack.count)}"
        yield "no merge" if merge is None else f"{names.node(merge.node)} {merge.count}"
        for layer in stack.stack.layers:
            yield f"{layer.depth} {names.node(layer.entry)} {names.node(layer.join)}"
        for site in stack.sites:
            yield f"{site.name} {names.node(site.value)} {site.dim} {site.group} {site.legal}"


def with_other_names(exported: ExportedProgram) -> ExportedProgram:
    """Return the program with every name replaced and all metadata but the values dropped."""
    renamed = scrambled(exported, seed=5)
    for node in renamed.graph.nodes:  # the rewriter makes Python of a graph: no dots
        node.name = node.name.replace(".", "_")
        node.target = node.name if node.op == "placeholder" else node.target
    signature = renamed.graph_signature
    for spec in (*signature.input_specs, *signature.output_specs):
        spec.arg = dataclasses.replace(spec.arg, name=spec.arg.name.replace(".", "_"))
    known = {spec.arg.name for spec in exported.graph_signature.input_specs}
    assert not known & {spec.arg.name for spec in renamed.graph_signature.input_specs}
    assert all(set(node.meta) <= {"val"} for node in renamed.graph.nodes)
    return renamed


@pytest.mark.parametrize("name", PLANS)
def test_names_and_metadata_change_nothing(name: str) -> None:
    facts = analysed(name).facts
    renamed = analyse(with_other_names(facts.exported))
    assert digest(renamed) == digest(facts)
    for budget in (0.5, 0.1):
        assert default_plan(renamed, budget) == default_plan(facts, budget)
    given = plan(PLANS[name])
    before, after = (apply_plan(f.exported, given, find_method).exported for f in (facts, renamed))
    assert print_graph(after, anonymous=True) == print_graph(before, anonymous=True)


def test_rewriting_twice_gives_the_same_print() -> None:
    """With symbolic sizes too: what fake tensors remember of the first time must not show."""
    sample = random_transformer.sample(15)
    assert draw(15).dynamic
    normal = normalize(sample.exported)
    chosen = plan("vision:1 flowcut 12, vision:end flowcut 4")
    texts = {print_graph(apply_plan(normal, chosen, find_method).exported) for _ in range(3)}
    assert len(texts) == 1


def test_the_digest_and_the_print_tell_two_models_apart() -> None:
    one, other = (analysed(name).facts for name in PLANS)
    assert digest(one) != digest(other)
    text = print_graph(other.exported, anonymous=True)
    short = apply_plan(other.exported, plan("vision:1 flowcut 18"), find_method).exported
    assert print_graph(short, anonymous=True) != text
