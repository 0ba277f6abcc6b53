"""Executed: the graph that ONNX Runtime makes of a saved model before it runs it, and where.

The runtime joins nodes, and takes apart operators for which its provider has no kernel.  What it
arrives at it writes on request (``optimized_model_filepath``), weights into a file beside it, so
that models above protobuf's 2 GiB work; both files are gone when the graph has been read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir
import onnxruntime

from tokopt.ir.errors import InputError

OUTSIDE = 1024
"""Weights of as many bytes are written beside the graph."""

SILENT = 4
"""ONNX Runtime's severity "fatal": that such a file fits one machine only is known here."""


@dataclass(frozen=True)
class Executed:
    """``graph`` is what runs; ``placed``: by provider how many of each operator it took.

    Operators are told as they were when providers chose, in front of the last fusions; nothing is
    told by an onnxruntime older than 1.24.
    """

    graph: onnx_ir.Graph
    placed: Mapping[str, Mapping[str, int]]


@contextmanager
def executed(path: Path, providers: list[str]) -> Iterator[Executed]:
    """Give what a session on ``providers`` runs; its weights may be read inside only.

    Takes the disk space of the model's weights for as long.  ``InputError`` for a model that
    does not load.
    """
    with TemporaryDirectory(prefix="tokopt-executed-") as place:
        options, file = onnxruntime.SessionOptions(), Path(place, "executed.onnx")
        options.log_severity_level = SILENT
        options.optimized_model_filepath = str(file)
        entry = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{entry}file_name", "weights")
        options.add_session_config_entry(f"{entry}min_size_in_bytes", str(OUTSIDE))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise InputError(
                f"ONNX Runtime does not load the model: {error}", where=str(path)
            ) from error
        yield Executed(onnx_ir.load(file).graph, _placed(session))


def _placed(session: onnxruntime.InferenceSession) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    told = getattr(session, "get_provider_graph_assignment_info", list)
    for part in told():
        own = found.setdefault(part.ep_name, Counter())
        own.update(node.op_type for node in part.get_nodes())
    return {provider: dict(sorted(count.items())) for provider, count in sorted(found.items())}
