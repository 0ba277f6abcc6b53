"""Small methods for tests: each as a score of taps and, written apart, as the reference's."""

from __future__ import annotations

from testsuite.passes.oracle.tiny_vit import State
from torch import Tensor

from tokopt.passes.methods.method import Method, Taps


def length_of_row(taps: Taps) -> Tensor:
    return taps.hidden.norm(dim=-1)


def relay_attention(taps: Taps) -> Tensor:
    """Mean attention of the relay over the layers read, weighted by the length of the value."""
    assert taps.relay is not None
    total = 0
    for layer in taps.layers:
        groups = taps.layers[0].query.shape[1] // layer.value.shape[1]
        size = layer.value.norm(dim=-1).repeat_interleave(groups, 1)
        total = total + (layer.row(taps.relay) * size).mean(1)
    return total + (0 if taps.carried is None else taps.carried)


def unlike_the_mean_key(taps: Taps) -> Tensor:
    """Distance of a key, and of a query, to the mean ones of the nearest layer."""
    keys, queries = taps.layers[-1].key, taps.layers[-1].query
    far = (keys - keys.mean(2, keepdim=True)).norm(dim=-1).mean(1)
    return far + (queries - queries.mean(2, keepdim=True)).norm(dim=-1).mean(1)


METHODS = {
    name: Method(name, "a test", frozenset(), score, lambda setting: ())
    for name, score in {
        "length": length_of_row,
        "relay": relay_attention,
        "unlike": unlike_the_mean_key,
    }.items()
}


def reference_score(
    method: str, state: State, since: int, relay: int, carried: Tensor | None
) -> Tensor:
    """Return the same from what the reference saw: ``since`` is the first layer to read."""
    if method == "length":
        return state.hidden.square().sum(-1).sqrt()
    if method == "unlike":
        layer, total = state.layers[-1], 0
        for part in (layer.key, layer.query):
            total = total + (part - part.sum(2, keepdim=True) / part.shape[2]).norm(dim=-1).mean(1)
        return total
    total = 0 if carried is None else carried
    for layer in state.layers[since:]:
        value = layer.value.repeat_interleave(layer.weights.shape[1] // layer.value.shape[1], 1)
        total = total + (layer.weights[:, :, relay] * value.norm(dim=-1)).mean(1)
    return total
