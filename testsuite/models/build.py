"""Export a trained model: PYTHONPATH=. python testsuite/models/build.py NAME [--checkpoint FILE].

Writes digits-NAME.pt2 beside this file.  The archive carries the weights and is their only copy;
``trained`` loads them back out of it.  (torch.export.load trusts its file: only for the archives of
this repository.)
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from testsuite.models.digits import samples
from testsuite.models.family import FAMILIES
from torch.export import ExportedProgram

OFF = 1e-5
"""How far the program may be off the eager model, of the largest logit."""


def archive(name: str) -> Path:
    """Where the model is."""
    return Path(__file__).with_name(f"digits-{name}.pt2")


def trained(name: str) -> Any:
    """The eager model with the weights of its archive."""
    return filled(name, torch.export.load(archive(name)).state_dict)


def filled(name: str, state: dict[str, torch.Tensor]) -> Any:
    """The eager model with the weights called ``model.*`` in ``state``."""
    model, prefix = FAMILIES[name].fresh(), "model."
    model.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    return model


def export(name: str, model: Any) -> ExportedProgram:
    """The exported program; its example is one picture, a copy, or more storage is written."""
    family = FAMILIES[name]
    program = family.capture(model).trace()
    one = family.inputs(samples(0, 1))
    program.example_inputs = (tuple(value.clone() for value in one.values()), {})
    return program


def difference(name: str, program: ExportedProgram, model: Any) -> float:
    """The largest difference of logits between the two, of the largest logit."""
    return max(FAMILIES[name].capture(model).differences(program).values())


def main() -> None:
    """Export, compare with eager, write."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("name", choices=FAMILIES)
    flags.add_argument("--checkpoint", type=Path, help="safetensors of train.py; else the archive")
    flags.add_argument("--out", type=Path)
    args = flags.parse_args()
    torch.set_num_threads(1)
    name, out = args.name, args.out or archive(args.name)
    model = filled(name, load_file(args.checkpoint)) if args.checkpoint else trained(name)
    torch.export.save(export(name, model), out)
    worst = difference(name, torch.export.load(out), model)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, off eager by {worst:.1e} of the largest")
    if worst > OFF:
        raise SystemExit("the exported program differs from the eager model")


if __name__ == "__main__":
    main()
