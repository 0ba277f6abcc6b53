"""Write held-out samples for ``tokopt eval``: python testsuite/models/write_eval_data.py FOLDER.

One file per prompt length (the questions of digits.py have one).  ``--split train`` writes
questions about pictures of the training split instead, for calibration: never evaluate on those.
"""

import argparse
from pathlib import Path
from typing import get_args

from safetensors.torch import save_file
from testsuite.models.canvas import Split
from testsuite.models.digits import KINDS, Samples, samples


def write(asked: Samples, file: Path) -> None:
    """Write samples with their answers and kinds as ``tokopt eval`` reads them."""
    tensors = {
        "pixel_values": asked.pixel_values,
        "input_ids": asked.input_ids,
        "answer": asked.answers,
        "kind": asked.kinds,
    }
    save_file(tensors, file, metadata={"kinds": ",".join(KINDS)})


def write_inputs(asked: Samples, file: Path) -> None:
    """Write samples as ``tokopt compile --inputs`` reads them."""
    save_file({"pixel_values": asked.pixel_values, "input_ids": asked.input_ids}, file)


def main() -> None:
    """Write the folder."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("folder", type=Path)
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--split", choices=get_args(Split), default="held_out")
    args = flags.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = samples(args.seed, args.samples, args.split)
    write(asked, args.folder / f"{args.split}-{asked.input_ids.shape[1]}.safetensors")
    train = samples(args.seed, 4, "train")
    write_inputs(train, args.folder.with_name(f"{args.folder.name}-inputs.safetensors"))


if __name__ == "__main__":
    main()
