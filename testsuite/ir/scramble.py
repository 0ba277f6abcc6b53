"""Scramble: the same program with every name of the user's replaced and all metadata dropped."""

from __future__ import annotations

import copy
import random
import string
from collections.abc import Callable

from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature


def scrambled(exported: ExportedProgram, seed: int = 0) -> ExportedProgram:
    """Rename modules, parameters, inputs and nodes at random; keep only ``meta['val']``.

    The result is for reading (it is not run: the call structure still has the old names).
    """
    dice = random.Random(seed)
    new = _renamer(dice)
    fresh = copy.copy(exported)
    module = copy.deepcopy(exported.graph_module)
    places = {node.name: f"n_{new(node.name)}" for node in module.graph.nodes}
    for node in module.graph.nodes:
        if node.op != "output":
            node.name = places[node.name]
            node.target = node.name if node.op == "placeholder" else node.target
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    signature = copy.deepcopy(exported.graph_signature)
    for spec in (*signature.input_specs, *signature.output_specs):
        if hasattr(spec.arg, "name") and spec.arg.name in places:
            spec.arg.name = places[spec.arg.name]
        if spec.target is not None:
            spec.target = new(spec.target)
    fresh._graph_module = module
    fresh._graph_signature = ExportGraphSignature(signature.input_specs, signature.output_specs)
    fresh._state_dict = {new(name): value for name, value in exported.state_dict.items()}
    fresh._constants = {new(name): value for name, value in exported.constants.items()}
    return fresh


def _renamer(dice: random.Random) -> Callable[[str], str]:
    """Return a function that gives each name one random new name, of one to three parts."""
    known: dict[str, str] = {}

    def new(name: str) -> str:
        if name not in known:
            parts = ["".join(dice.choices(string.ascii_lowercase, k=6)) for _ in range(3)]
            known[name] = ".".join(parts[: dice.randint(1, 3)]) + f".x{len(known)}"
        return known[name]

    return new
