"""``tokopt export``: capture a Hugging Face model as a .pt2 that is checked against the model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tokopt.cli import capture_request
from tokopt.cli.capture_families import FAMILIES, Family, family_of
from tokopt.cli.capture_generation import Generation
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_source import (
    import_transformers,
    load,
    read_config,
    read_image_processor,
    resolve,
)
from tokopt.ir.errors import GateError, InputError
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.ir.tolerances import TOLERANCES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``export`` and its options."""
    parser = subparsers.add_parser(
        "export",
        help="capture a Hugging Face model as a .pt2",
        description="Capture a model with torch.export, compare it with the model, write a .pt2. "
        f"Model types: {', '.join(FAMILIES)}.",
    )
    parser.add_argument("model", help="folder with config.json and *.safetensors, or a hub id")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="MODEL.pt2")
    parser.add_argument("--image-size", type=capture_request.image_size, metavar="HxW")
    parser.add_argument(
        "--prompt-length",
        type=int,
        metavar="N",
        help="tokens of input_ids, image placeholders included (default: image and 64 more)",
    )
    parser.add_argument(
        "--images", type=capture_request.count, default=1, metavar="N", help="images per prompt"
    )
    parser.add_argument(
        "--frames", type=capture_request.count, metavar="N", help="frames of the video per prompt"
    )
    parser.add_argument(
        "--padding",
        action="store_true",
        help="take an attention_mask, 0 where a prompt is padded (left or right)",
    )
    parser.add_argument(
        "--dynamic",
        type=capture_request.dynamic,
        default=frozenset(),
        metavar="batch,length",
        help="leave the batch size and/or the prompt length free",
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="write two programs: prefill, which gives its cache, and decode, which makes a token",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCES["float32"],
        help="largest difference to the model in float32, relative to its largest output "
        "(other dtypes are compared too, within their own rounding)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and return 0; problems are raised as ``TokoptError``, and nothing is written then."""
    start, output = time.perf_counter(), _checked_output(args.output)
    import_transformers()
    folder = resolve(args.model)
    config = read_config(folder)
    family = family_of(config, str(folder))
    request = Request(
        args.image_size,
        args.prompt_length,
        args.dynamic,
        images=args.images,
        frames=args.frames,
        padding=args.padding,
        decode=args.decode,
    )
    report: dict[str, Any] = {"output": str(output), "model_type": config["model_type"]}
    report |= {"dtype": args.dtype, "dynamic": sorted(request.dynamic)}
    # A wrong mask or position hides under the rounding of 16 bits, so float32 comes first always.
    for name in dict.fromkeys(["float32", args.dtype]):
        programs, facts = _capture(folder, family, config, request, name, args.tolerance)
        report |= facts
    write(programs, output)
    report |= {"bytes": output.stat().st_size, "seconds": round(time.perf_counter() - start, 1)}
    if args.json:
        print(json.dumps(report))
    else:
        print(
            f"{output}: {report['nodes']} nodes, {report['dtype']}, image {report['image_size']}, "
            f"{report['visual_tokens']} visual tokens, "
            f"differs from the model by {report['difference']:.1e}"
        )
    return 0


def _capture(
    folder: Path, family: Family, config: dict[str, Any], request: Request, dtype: str, most: float
) -> tuple[dict[str, ExportedProgram], dict[str, Any]]:
    """Load, trace and compare in one dtype; return the programs and what to report of them."""
    if dtype != "float32":
        most = max(most, TOLERANCES[dtype])
    _say(f"loading {folder} in {dtype}")
    model = load(folder, family.auto_class(config), DTYPES[dtype], family.attention)
    capture = family.prepare(model, request, read_image_processor(folder))
    _say(f"capturing, {', '.join(f'{k} {v}' for k, v in capture.facts.items())}")
    if request.decode:
        generation = Generation.of(capture, request)
        programs = generation.trace()
    else:
        programs = {"forward": capture.trace()}
    _say(f"comparing on {1 + len(capture.others)} samples")
    differences = (
        generation.differences(programs)
        if request.decode
        else capture.differences(programs["forward"])
    )
    where, worst = max(differences.items(), key=lambda item: item[1])
    if not worst <= most:
        raise GateError(
            f"the captured program differs from the model by {worst:.1e}",
            where=f"{where}, {dtype}",
            expected=f"at most {most:.1e} (--tolerance)",
            hint="nothing was written; leave out --dynamic, or report the model's config.json",
        )
    nodes = sum(len(one.graph.nodes) for one in programs.values())
    names = next(iter(programs.values())).graph_signature.user_inputs
    shapes = [list(tensor.shape) for tensor in capture.inputs]
    inputs = dict(zip(names, shapes, strict=True))
    measured = {"nodes": nodes, "difference": worst, "tolerance": most, "inputs": inputs}
    return programs, {**capture.facts, **measured}


def write(programs: Mapping[str, ExportedProgram], output: Path) -> None:
    """Write the archive, example inputs included, beside ``output`` and rename it."""
    if len(programs) > 1:
        save(Program(dict(programs)), output)
        return
    (exported,) = programs.values()
    beside = output.with_name(f".{output.stem}.{os.getpid()}.pt2")
    try:
        torch.export.save(exported, beside)
        os.replace(beside, output)
    except OSError as error:
        raise InputError("the file cannot be written", where=f"{output}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _checked_output(output: Path) -> Path:
    """Refuse an output that could not be written, before hours are spent."""
    if output.suffix != ".pt2" or output.is_dir():
        raise InputError("this is no name for a program", where=str(output), expected="NAME.pt2")
    if not output.parent.is_dir():
        raise InputError("there is no such folder", where=str(output.parent))
    return output


def _say(text: str) -> None:
    print(f"tokopt export: {text}", file=sys.stderr, flush=True)
