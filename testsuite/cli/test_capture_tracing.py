import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import LlamaConfig, masking_utils

from tokopt.cli.capture_tracing import dense_injection, index_masks, whole_batch


def flags(tokens: Tensor) -> Tensor:
    """A mask as the library makes one with a union: within the image, or causal."""
    kind = (tokens == 1).long() - 1
    return masking_utils.create_causal_mask(
        config=LlamaConfig(attn_implementation="sdpa"),
        inputs_embeds=torch.zeros(*tokens.shape, 4),
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        or_mask_function=masking_utils.blockwise_overlay(kind),
    )


def test_masks_by_indices_are_those_by_vmap() -> None:
    tokens = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    want = flags(tokens)
    with index_masks():
        got = flags(tokens)
    assert torch.equal(got, want) and bool(got[0, 0, 1, 2]) and not bool(got[0, 0, 0, 1])


@pytest.mark.parametrize("by_index", [False, True])
def test_only_masks_by_indices_leave_an_operator_graph(by_index: bool) -> None:
    class Masked(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            if not by_index:
                return flags(tokens)
            with index_masks():
                return flags(tokens)

    program = torch.export.export(Masked(), (torch.tensor([[0, 1, 1, 0]]),), strict=False)
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    plain = all(isinstance(target, torch._ops.OpOverload) for target in targets)
    assert plain == by_index


def test_the_librarys_masks_are_back_afterwards_even_after_an_error() -> None:
    masks = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    before = (masks["sdpa"], masks["eager"])
    with pytest.raises(ZeroDivisionError), index_masks():
        assert masks["sdpa"] is not before[0]
        raise ZeroDivisionError
    assert (masks["sdpa"], masks["eager"]) == before


class Listed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with whole_batch():
            return torch.cat(list(x), dim=0)


def test_a_list_of_a_free_batch_is_traced_for_every_size() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(Listed(), (x,), dynamic_shapes=shapes, strict=False)
    for batch in (2, 5):
        given = torch.randn(batch, 3, 4)
        assert torch.equal(program.module()(given), given.flatten(0, 1))


def test_a_list_of_a_batch_of_known_size_is_what_it_was() -> None:
    with whole_batch():
        assert [tuple(item.shape) for item in torch.zeros(2, 3, 4)] == [(3, 4), (3, 4)]


class Injected(nn.Module):
    """As the library adds features to the rows of the image."""

    def _deepstack_process(self, states: Tensor, places: Tensor, features: Tensor) -> Tensor:
        states = states.clone()
        states[places] = states[places] + features
        return states


def test_dense_injection_adds_the_same_features_to_the_same_rows() -> None:
    model, states = Injected(), torch.randn(2, 5, 3)
    places, features = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]).bool(), torch.randn(4, 3)
    want = model._deepstack_process(states, places, features)
    with dense_injection(nn.Sequential(model)):
        got = model._deepstack_process(states, places, features)
    torch.testing.assert_close(got, want)
    assert "_deepstack_process" not in vars(model)
