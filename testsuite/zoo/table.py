"""The table of what compiles: every model of the zoo, judged, written to docs/zoo.md.

    export OMP_NUM_THREADS=1 PYTHONPATH=src:.
    python -m testsuite.zoo.table --work /tmp/zoo-table --aotinductor

One process per model; a model whose record is in ``--work`` is not judged again (delete the file
to have it judged anew), so an interrupted run goes on where it was.  MLIR is judged where the extra
mlir is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from testsuite.zoo import registry

Record = Mapping[str, Any]
COLUMNS = (
    "model",
    "export",
    "stacks: legal sites of all",
    "merge",
    "relay",
    "identity",
    "vision side 1 / .5 / .1",
    "decoder 1 / .5 / .1",
    "both 1 / .5 / .1",
    "default at .25",
    "ONNX Runtime",
    "AOTInductor",
    "MLIR",
    "s",
)
HEAD = """# Which models compile

Made by `python -m testsuite.zoo.table --work FOLDER` from tiny models with random weights
(`testsuite/zoo`, one builder per model); read the docstring there to make it again.

Every number is a largest difference in fp32, relative to the largest output where that exceeds 1.
**export**: the exported program against the eager model, also on inputs it was not traced with.
**identity**: the rewritten program that keeps everything against the original.  **vision side,
decoder, both**: the method `stride` at the middle legal site, keeping all, half, a tenth of what
arrives, against the masked oracle on an input that was not traced.  **default**: the plan that
`--budget 0.25` chooses.  **ONNX Runtime**: every one of these plans (their number in brackets),
lowered, against the rewritten program; **AOTInductor**, and **MLIR** (`--target mlir`, linalg that
IREE compiles and runs): the half-plan with most stages.
"-": there is no such side in the model.  What is refused or wrong is listed below the table.
"""


def cell(plans: list[Record], key: str = "oracle") -> str:
    """Return the differences of some plans, or that they were refused."""
    return " / ".join(number(plan.get(key), plan.get("refused")) for plan in plans) or "-"


def largest(plans: list[Record], key: str) -> str:
    """Return the largest difference of all plans lowered and their number, or how many failed."""
    lowered = [plan[key] for plan in plans if key in plan]
    failed = sum(not isinstance(difference, float) for difference in lowered)
    if failed or not lowered:
        return f"{failed} of {len(lowered)} FAILED" if lowered else "-"
    return f"{number(max(lowered))} ({len(lowered)})"


def number(value: Any, refused: Any = None) -> str:
    """Return a difference as text; "refused" or "FAILED" where there is none."""
    if isinstance(value, int | float):
        return "0" if value == 0 else f"{value:.0e}"
    if refused is not None:
        return "refused"
    return "-" if value is None else "FAILED"


def row(record: Record) -> list[str]:
    """Return the cells of one model."""
    if "crashed" in record:
        return [record["name"], "crashed", *[""] * (len(COLUMNS) - 2)]
    stacks, plans = record.get("stacks", []), record["plans"]
    by = {
        w: [p for p in plans if p["where"] == w] for w in ("vision", "decoder", "both", "default")
    }
    seen = [s for s in stacks if s["role"] != "text"]
    merges = dict.fromkeys(s["merge"] for s in seen if s["merge"])
    relays = [f"{s['role']} {s['relay']}" for s in seen if s["relay"] is not None]
    compiled = [p for p in plans if "aotinductor" in p]
    mlir = [p for p in plans if "mlir" in p]
    identities = [p["identity"] for p in plans if isinstance(p.get("identity"), float)]
    places = [f"{s['role']} {s['legal']}/{s['sites']}{_groups(s)}" for s in seen]
    return [
        record["name"],
        number(record["export"]),
        ", ".join(places) or "none",
        ", ".join(merges) or "-",
        ", ".join(relays) or "-",
        number(max(identities)) if identities else "-",
        *(_sides(by, where, stacks) for where in ("vision", "decoder", "both")),
        cell(by["default"]),
        largest(plans, "onnxruntime-cpu"),
        cell(compiled, "aotinductor") if compiled else "not run",
        cell(mlir, "mlir") if mlir else "not run",
        f"{record['seconds']:.0f}",
    ]


def _sides(by: Mapping[str, list[Record]], where: str, stacks: list[Record]) -> str:
    """Return a side's cell; "barred" where the model has the side and no site on it is legal."""
    if by[where]:
        return cell(by[where])
    there = [s for s in stacks if s["role"].startswith(where)]
    return "barred" if there else "-"


def _groups(stack: Record) -> str:
    groups = [g for g in stack["groups"] if g > 1]
    return f" (groups of {', '.join(map(str, groups))})" if groups else ""


def reasons(record: Record) -> Iterator[str]:
    """Yield, as text, everything about a model that was refused, barred or wrong."""
    if "crashed" in record:
        yield record["crashed"]
    if "inspect" in record:
        yield record["inspect"]
    for stack in record.get("stacks", []):
        for why, sites in stack["barriers"].items():
            yield f"{', '.join(sites)}: {why}"
    for plan in record.get("plans", []):
        title = f"{' + '.join(plan.get('stages', [])) or plan['where']}"
        for key, value in plan.items():
            if isinstance(value, str) and value and key != "where":
                yield f"{title}: {'' if key == 'refused' else key + ': '}{value}"


def page(records: list[Record]) -> str:
    """Return the Markdown page."""
    lines = [HEAD, "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row(record)) + " |" for record in records]
    lines += ["", "## What is refused, and why", ""]
    for record in records:
        found = list(dict.fromkeys(_short(reason) for reason in reasons(record)))
        if found:
            lines += [f"**{record['name']}**", "", *(f"- {reason}" for reason in found), ""]
    lines += ["## The models", ""]
    lines += [f"- **{r['name']}**: {r.get('summary', '')}" for r in records]
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    """Return a reason on one line, without the folder the library happens to be in."""
    text = re.sub(r'File "[^"]*?(?:site-packages|testsuite)/', 'File "', reason)
    return " ".join(text.split())


def judged(name: str, work: Path, options: list[str], limit: float) -> Record:
    """Return a model's record, from ``work`` if it is there."""
    file = work / f"{name}.json"
    if not file.exists():
        command = [sys.executable, "-m", "testsuite.zoo.judge", name, str(file), *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"name": name, "crashed": f"no answer in {limit:.0f} s"}
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-4:]) or "no message"
            return {"name": name, "crashed": f"exit {done.returncode}: {last[-600:]}"}
    return json.loads(file.read_text())


def main() -> None:
    """Judge what is not judged yet and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of records, made if absent"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.md"))
    parser.add_argument("--only", nargs="+", choices=registry.names(), help="these models alone")
    parser.add_argument("--limit", type=float, default=900, help="seconds per model")
    parser.add_argument("--aotinductor", action="store_true", help="also AOTInductor (slow)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    options = ["--aotinductor"] if args.aotinductor else []
    records = []
    for name in args.only or registry.names():
        records.append(judged(name, args.work, options, args.limit))
        print(f"{name}: {records[-1].get('crashed', 'judged')}", flush=True)
    args.output.parent.mkdir(exist_ok=True)
    beside = args.output.with_suffix(".tmp")
    beside.write_text(page(records))
    beside.replace(args.output)


if __name__ == "__main__":
    main()
