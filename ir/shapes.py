"""Shapes: whether the value recorded at every call is the one its operator gives.

Each call is run once more on fake tensors of its operands' recorded shapes: no data, and no guards,
so the symbols stay as free as they were.  Calls that repeat (layers do) are run once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.dims import describe
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.names import sizes_of
from tokopt.ir.text import dtype_text


def shape_faults(exported: ExportedProgram) -> Iterator[str]:
    """Yield every call whose recorded value is missing, or not what the operator gives."""
    seen: dict[str, str | None] = {}
    for node in exported.graph.nodes:
        if node.op not in ("call_function", "placeholder"):
            continue
        if "val" not in node.meta:
            yield f"{describe(node)}: no value is recorded (meta['val'])"
        elif node.op == "call_function" and all("val" in a.meta for a in node.all_input_nodes):
            key = _call_text(node)
            if key not in seen:
                seen[key] = _shape_fault(node)
            if (fault := seen[key]) is not None:
                yield f"{describe(node)}: {fault}"


def _call_text(node: fx.Node) -> str:
    """Return all that decides a call's shapes; layers repeat, and each form is run once."""
    operands = fx.node.map_arg((node.args, node.kwargs), lambda n: f"<{_key(n.meta['val'])}>")
    return f"{node.target}{operands} -> {_key(node.meta['val'])}"


def _key(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        strides = [length_of(stride) for stride in value.stride()]
        return f"{_form(value)} {strides}"
    if isinstance(value, (list, tuple)):
        return str([_key(item) for item in value])
    return str(value)


def _shape_fault(node: fx.Node) -> str | None:
    """Run one call on its operands' recorded values and compare what comes out."""
    recorded = _tensors(node.meta["val"])
    if not recorded or "unbacked_bindings" in node.meta or not isinstance(recorded[0], FakeTensor):
        return None  # a size; or sizes that depend on data, new symbols at every run
    mode: FakeTensorMode = recorded[0].fake_mode
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        with mode, enable_python_dispatcher(), _no_guards(mode):
            derived = _tensors(node.target(*args, **kwargs))  # type: ignore[operator]
    except Exception as error:  # operators raise whatever they like at operands that do not fit
        return f"does not accept its operands ({(str(error).splitlines() or [''])[0]:.200})"
    if _same(recorded, derived):
        return None
    was, now = (", ".join(_form(t) for t in tensors) for tensors in (recorded, derived))
    return f"{was} is recorded, and the operator gives {now or 'no tensor'}"


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _no_guards(mode: FakeTensorMode) -> Any:
    """Keep the shape environment as it is: what is asked of symbols here adds no guard."""
    if mode.shape_env is None:
        return torch.no_grad()
    return mode.shape_env.suppress_guards()


def _same(recorded: list[torch.Tensor], derived: list[torch.Tensor]) -> bool:
    if len(recorded) != len(derived):
        return False
    for a, b in zip(recorded, derived, strict=True):
        if a.dtype != b.dtype or a.device != b.device or a.ndim != b.ndim:
            return False
        sizes = zip(sizes_of(a), sizes_of(b), strict=True)
        if not all(same_length(length_of(x), length_of(y)) for x, y in sizes):
            return False
    return True


def _form(tensor: torch.Tensor) -> str:
    sizes = ", ".join(str(length_of(size)) for size in tensor.shape)
    return f"{dtype_text(tensor.dtype)}[{sizes}] on {tensor.device}"
