"""Record: the plans, the log and the manifest of what was compiled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tokopt.cli.candidate import Candidate
from tokopt.cli.clock import Clock
from tokopt.cli.stored_cache import CACHE
from tokopt.cli.whole import Whole
from tokopt.cli.write_tensors import write_tensors
from tokopt.targets.artifact import LOG, PLAN, seal
from tokopt.targets.base import Target
from tokopt.targets.manifest import FAILED, OK, Manifest, Run, SparseStep
from tokopt.targets.parts import of_part


def record(
    draft: Path,
    made: Sequence[Candidate],
    whole: Whole,
    sparse: SparseStep | None,
    target: Target,
    sha256: str,
    device: str,
    clock: Clock,
) -> Manifest:
    """Write the plans, the log and the manifest; ``sha256`` is the archive's.

    ``sparse``: what decodes on long caches, None where nothing does.
    """
    entries = [one.recorded() for one in made]
    for one, entry in zip(made, entries, strict=True):
        text = one.checked.plan.to_toml()
        (draft / of_part(PLAN, entry.part)).write_text(text, encoding="utf-8")
    if whole.cache is not None:
        write_tensors(whole.cache.tensors, draft / CACHE)
    verdicts = [verdict for one in made for verdict in one.verdicts]
    log = "\n".join([*clock.lines, *(str(v) for v in verdicts), ""])
    (draft / LOG).write_text(log, encoding="utf-8")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    first, *further = entries
    manifest = Manifest(
        target=target.name,
        choices=target.choices(draft),
        placeholders=whole.placeholders,
        input_sha256=sha256,
        seed=made[0].checked.plan.seed,
        run=Run(created=now, seconds=dict(clock.seconds)),
        variants=tuple(further),
        decoding=whole.decoding,
        device=device,
        cache=() if whole.cache is None else whole.cache.records,
        sparse=sparse,
        status=OK if all(v.passed for v in verdicts) else FAILED,
        **first.fields,
    )
    return seal(draft, manifest)
