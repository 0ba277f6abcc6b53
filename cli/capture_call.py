"""NamedCall: a module called as ``f(*inputs)`` whose exported inputs carry the library's names.

``torch.export`` names the inputs of a program after the parameters of ``forward``.  Which inputs
there are depends on the model and the request (a padding mask, positions), so the signature is
made per instance.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class NamedCall(nn.Module):
    """``f(*inputs)`` with parameters called ``names``; a subclass says in ``call`` what happens."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

        def forward(*inputs: Tensor) -> Any:
            return self.call(dict(zip(self.names, inputs, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in self.names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward

    def call(self, given: dict[str, Any]) -> Any:
        """Return the output or outputs for inputs by name."""
        raise NotImplementedError
