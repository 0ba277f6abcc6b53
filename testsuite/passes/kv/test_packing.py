"""Packing: bytes worked by hand, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokopt.ir.errors import InputError
from tokopt.passes.kv.packing import pack, pack_trits, unpack, unpack_trits

BY_HAND = [
    (4, [1, 2, 15, 0], [0x21, 0x0F]),
    (2, [3, 0, 1, 2], [3 + 1 * 16 + 2 * 64]),
    (1, [1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], [129, 2]),
]


@pytest.mark.parametrize(("bits", "codes", "packed"), BY_HAND)
def test_the_first_code_is_in_the_lowest_bits(bits, codes, packed):
    found = pack(torch.tensor(codes), bits)
    assert found.dtype == torch.uint8 and found.tolist() == packed
    assert unpack(found, bits).tolist() == codes


def test_five_trits_are_the_digits_of_a_byte_and_a_short_row_is_filled_with_zeros():
    codes = torch.tensor([[2, 2, 2, 2, 2, 1, 0, 2]])
    packed = pack_trits(codes)
    assert packed.tolist() == [[242, 1 + 0 * 3 + 2 * 9]]
    assert unpack_trits(packed, 8).tolist() == codes.tolist()


@given(st.sampled_from([1, 2, 4]), st.integers(0, 9), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_codes_come_back_and_cost_exactly_their_bits(bits, bytes_, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (2, 3, bytes_ * 8 // bits), generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, bytes_) and torch.equal(unpack(packed, bits), codes)
    trits = codes % 3
    assert torch.equal(unpack_trits(pack_trits(trits), trits.shape[2]), trits)


def test_codes_that_fill_no_bytes_are_refused():
    with pytest.raises(InputError, match="2-bit codes in a row is 6"):
        pack(torch.zeros(6), 2)
