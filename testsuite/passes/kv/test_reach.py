"""Static scales at positions that calibration did not see."""

import pytest
import torch

from tokopt.ir.errors import InputError
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.reach import reach_of
from tokopt.passes.kv.samples import Rotary, Samples

WIDTH, SEEN, LONGEST = 64, 512, 32768
FREQUENCIES = 1e6 ** -(torch.arange(0, WIDTH, 2) / WIDTH)


def keys_at(positions, interleaved=False):
    """Keys of one head with large means before RoPE, as models with biases have; and turned."""
    generator = torch.Generator().manual_seed(0)
    mean = 4 * torch.randn(WIDTH, generator=generator)
    rows = mean + torch.randn(len(positions), WIDTH, generator=generator)
    angle = positions[:, None].double() * FREQUENCIES.double()
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = Rotary(WIDTH, interleaved).pairs(WIDTH)
    turned = torch.empty_like(rows)
    turned[:, first] = rows[:, first] * cos - rows[:, second] * sin
    turned[:, second] = rows[:, second] * cos + rows[:, first] * sin
    return turned[None, None]


def error(format, constants, keys):
    """Return the relative error of keys, and how many values are clamped."""
    back = format.dequantize("key", format.quantize("key", keys, constants, None), constants)
    beyond = ((keys - constants["centre"]).abs() > 1.001 * 127 * constants["scale"]).sum()
    return float((back - keys).norm() / keys.norm()), int(beyond)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scales_calibrated_on_512_positions_hold_at_32768(interleaved):
    seen, format = keys_at(torch.arange(SEEN), interleaved), Int8()
    pairs = format.calibrate("key", Samples([seen], Rotary(WIDTH, interleaved)))
    alone = format.calibrate("key", Samples([seen]))  # each channel by itself: what drifts
    early, drifted = error(format, pairs, seen)[0], []
    for start in (0, 4096, 16384, LONGEST - SEEN):
        keys = keys_at(torch.arange(start, start + SEEN), interleaved)
        late, beyond = error(format, pairs, keys)
        assert late < 1.15 * early < 0.01
        assert beyond == 0
        drifted.append(error(format, alone, keys)[0])
    assert drifted[0] < early and drifted[3] > 20 * early  # so the test can fail


def test_a_centre_that_turns_with_the_positions_is_finer_and_holds_as_well():
    positions = torch.arange(SEEN)
    seen, format = keys_at(positions), Int8()
    rotary = Rotary(WIDTH, False, FREQUENCIES, LONGEST)
    centred = format.calibrate("key", Samples([seen], rotary, [positions[None]]))
    plain = format.calibrate("key", Samples([seen], rotary))
    assert bool((centred["scale"] <= plain["scale"]).all())
    assert bool((centred["centre"] != 0).any()) and bool((plain["centre"] == 0).all())
    for start in (0, 4096, 16384, LONGEST - SEEN):
        keys = keys_at(torch.arange(start, start + SEEN))
        late, beyond = error(format, centred, keys)
        assert late < error(format, plain, keys)[0]
        assert beyond == 0
    apart = positions[None, :, None].expand(1, -1, WIDTH // 2)  # positions of each pair
    same = format.calibrate("key", Samples([seen], rotary, [apart]))
    assert torch.equal(same["scale"], centred["scale"])


def test_channels_that_do_not_turn_have_a_centre_and_a_silent_one_a_scale():
    rows = torch.randn(1, 2, 50, 16, generator=torch.Generator().manual_seed(0)) + 9
    rows[..., 12] = 3.0
    found = reach_of(Samples([rows[:, :, :20], rows[:, :, 20:]], Rotary(8)))
    low, high = rows[0, 0, :, 10].min(), rows[0, 0, :, 10].max()
    assert torch.allclose(found.centre[0, 0, 0, 10], (low + high) / 2)
    assert torch.allclose(found.reach[0, 0, 0, 10], (high - low) / 2)
    assert found.centre[0, 0, 0, 12] == 3 and found.reach[0, 0, 0, 12] > 0.5
    assert torch.equal(found.reach[..., :4], found.reach[..., 4:8])


def test_calibration_that_tells_no_scale_is_refused():
    rows = torch.randn(1, 2, 50, 16)
    with pytest.raises(InputError, match="rows are all the same"):
        Int8().calibrate("value", Samples([torch.zeros(1, 2, 50, 16)]))
    with pytest.raises(InputError, match="cannot have 5 channels turned in pairs"):
        Samples([rows], Rotary(5))
    with pytest.raises(InputError, match="cannot have 18 channels"):
        Samples([rows], Rotary(18))
    with pytest.raises(InputError, match="saw no rows"):
        Samples([])
    with pytest.raises(InputError, match="differ in heads or width"):
        Samples([rows, rows[:, :1]])
    rotary = Rotary(16, False, torch.ones(8), 99)
    with pytest.raises(InputError, match="not as many as the rows"):
        Int8().calibrate("key", Samples([rows], rotary, [torch.arange(49)[None]]))
    other = Int8().calibrate("value", Samples([rows[:, :1]]))
    with pytest.raises(InputError, match="that of this layer's heads"):
        Int8().quantize("value", rows, other, None)
