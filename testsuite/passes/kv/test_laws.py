"""What is true of every format of the registry."""

import dataclasses

import pytest
import torch
from testsuite.passes.kv.rows import constants_of, rows_like_a_cache, salience_of

from tokopt.ir.errors import InputError
from tokopt.passes.kv.format import WINDOW
from tokopt.passes.kv.registry import FORMATS, find_format
from tokopt.passes.kv.stored import bits_per_value, bytes_per_token, stored_bytes

SIDES = ("key", "value")
CASES = [(name, side) for name in FORMATS for side in SIDES]
ITEMS, HEADS, TOKENS, WIDTH = 2, 2, 300, 64
BOTH = ITEMS * HEADS

# Worked by hand from the papers' layouts, for 2 items of 2 heads of 300 rows of 64 values:
# codes + scales and zeros (2 bytes each) + rows that wait (2 bytes a value).
ZIP_CODES = BOTH * (180 * 64 // 2 + 120 * 64 // 4)
BYTES = {
    ("half", "key"): BOTH * 300 * 64 * 2,
    ("half", "value"): BOTH * 300 * 64 * 2,
    ("int8", "key"): BOTH * 300 * 64,
    ("int8", "value"): BOTH * 300 * 64,
    ("fp8", "key"): BOTH * 300 * 64,
    ("fp8", "value"): BOTH * 300 * 64,
    ("int4", "key"): BOTH * 300 * 32,
    ("int4", "value"): BOTH * 300 * 32,
    # of 300 rows the last 128 wait, and 12 more that fill no group of 32
    ("kivi", "key"): BOTH * (160 * 16 + 2 * 2 * (160 // 32) * 64 + 2 * 140 * 64),
    ("kivi", "value"): BOTH * (160 * 16 + 2 * 2 * 160 * (64 // 32) + 2 * 140 * 64),
    ("zipcache", "key"): ZIP_CODES + BOTH * 2 * 2 * 2 * 64,
    ("zipcache", "value"): ZIP_CODES + BOTH * 2 * 2 * 64 + ITEMS * 2 * 2 * 300,
    # 9 groups of 32; 32 channels in 2 bits with scale and zero, 32 in 1 bit with a scale
    ("vidkv", "key"): BOTH * (288 * (8 + 4) + 2 * 9 * (2 * 32 + 32) + 2 * 12 * 64),
    # two salient groups in 2 bits, 7 of three values: 64 in 13 bytes
    ("vidkv", "value"): BOTH * (64 * 16 + 2 * 2 * 2 * 64 + 224 * 13 + 2 * 7 * 64 + 2 * 12 * 64),
}


@pytest.fixture(scope="module")
def rows():
    return rows_like_a_cache(TOKENS)


def prompt(format, side, rows):
    """A state, its constants, the salience of all rows."""
    constants, salience = constants_of(format, side, rows), salience_of(rows)
    return format.quantize(side, rows, constants, salience), constants, salience


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_bytes_are_those_of_the_layout(name, side, rows):
    state, _, _ = prompt(FORMATS[name], side, rows)
    assert stored_bytes(state) == BYTES[name, side]
    assert bits_per_value(state, rows) == 8 * BYTES[name, side] / rows.numel()
    assert bytes_per_token(state, rows) == BYTES[name, side] / (ITEMS * TOKENS)


@pytest.mark.parametrize(("name", "side"), CASES)
def test_what_comes_back_is_near_what_was_stored(name, side, rows):
    format = FORMATS[name]
    state, constants, salience = prompt(format, side, rows)
    before, back = format.arrange(rows, salience), format.dequantize(side, state, constants)
    assert back.shape == before.shape and back.dtype == torch.float32
    error = (back - before).abs().mean()
    # a code of the right row and channel: a random one would be off by the size of the rows
    assert error <= format.tolerance * (before - before.mean(2, keepdim=True)).abs().mean()


@pytest.mark.parametrize(("name", "side"), CASES)
def test_what_was_coded_is_never_coded_again(name, side, rows):
    format = FORMATS[name]
    state, constants, _ = prompt(format, side, rows)
    more = rows_like_a_cache(230, seed=3)
    waiting = state[WINDOW].shape[2] if WINDOW in state else 0
    new = salience_of(torch.cat([rows[:, :, :waiting], more], 2), seed=4)
    whole = format.append(side, state, more, constants, new)
    stepped, at = state, 0
    for step in (1, 99, 100, 30):
        held = stepped[WINDOW].shape[2] if WINDOW in stepped else 0
        told = new[:, :, waiting + at - held : waiting + at + step]
        piece = more[:, :, at : at + step]
        stepped, at = format.append(side, stepped, piece, constants, told), at + step
    for key, old in state.items():
        assert torch.equal(stepped[key], whole[key])  # in how many steps does not matter
        if key != WINDOW:
            assert torch.equal(whole[key][:, :, : old.shape[2]], old)
    assert format.dequantize(side, whole, constants).shape[2] == TOKENS + 230
    if waiting:  # rows that wait are themselves, in half precision
        back = format.dequantize(side, state, constants)[:, :, -waiting:]
        assert torch.equal(back, state[WINDOW].float())


@pytest.mark.parametrize(("name", "side"), [case for case in CASES if not FORMATS[case[0]].pooled])
def test_a_prefix_has_the_codes_of_the_whole(name, side, rows):
    format = FORMATS[name]
    state, constants, _ = prompt(format, side, rows)
    prefix = format.quantize(side, rows[:, :, :170], constants, None)
    later = format.append(side, prefix, rows[:, :, 170:], constants, None)
    for key, value in state.items():
        assert torch.equal(later[key], value)
        if key != WINDOW:
            assert torch.equal(value[:, :, : prefix[key].shape[2]], prefix[key])


@pytest.mark.parametrize(("name", "side"), CASES)
def test_items_of_a_batch_do_not_see_each_other(name, side, rows):
    format = FORMATS[name]
    state, constants, salience = prompt(format, side, rows)
    alone = format.quantize(side, rows[1:], constants, salience[1:])
    assert all(torch.equal(alone[key], value[1:]) for key, value in state.items())


@pytest.mark.parametrize(("name", "side"), CASES)
def test_short_prompts_are_stored_and_grow(name, side, rows):
    format, constants = FORMATS[name], constants_of(FORMATS[name], side, rows)
    for count in (3, 32, 40):
        salience = salience_of(rows[:, :, :count])
        state = format.quantize(side, rows[:, :, :count], constants, salience)
        told = salience_of(rows[:, :, : count + 200])
        longer = format.append(side, state, rows[:, :, count : count + 200], constants, told)
        for kept, wanted in ((state, count), (longer, count + 200)):
            assert format.dequantize(side, kept, constants).shape == (2, 2, wanted, WIDTH)


@pytest.mark.parametrize(("name", "side"), CASES)
def test_bfloat16_rows_keep_their_range(name, side):
    format, large = FORMATS[name], rows_like_a_cache(160).to(torch.bfloat16) * 2.0**20
    state, constants, salience = prompt(format, side, large)
    back = format.dequantize(side, state, constants)
    before = format.arrange(large.float(), salience)
    assert torch.isfinite(back).all()
    assert (back - before).abs().mean() <= format.tolerance * before.abs().mean()


class _AllFormats(torch.nn.Module):
    def forward(self, rows, salience, constants):
        out = {}
        for name, side in CASES:
            format, given = FORMATS[name], constants[f"{name}.{side}"]
            state = format.quantize(side, rows, given, salience)
            longer = format.append(
                side, state, rows[:, :, :128], given, torch.cat([salience] * 2, 2)
            )
            out[f"{name}.{side}"] = longer, format.dequantize(side, longer, given)
        return out


def test_every_format_exports_to_plain_operators_and_gives_the_same_bits(rows):
    given = {f"{name}.{side}": constants_of(FORMATS[name], side, rows) for name, side in CASES}
    inputs = (rows, salience_of(rows), given)
    exported = torch.export.export(_AllFormats(), inputs)
    targets = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert all(target.startswith("aten.") for target in targets if "getitem" not in target)
    eager, graph = _AllFormats()(*inputs), exported.module()(*inputs)
    for case, (state, back) in eager.items():
        assert all(torch.equal(graph[case][0][key], value) for key, value in state.items()), case
        assert torch.equal(graph[case][1], back), case


@pytest.mark.parametrize(("name", "side"), CASES)
def test_rows_that_cannot_be_stored_are_refused(name, side, rows):
    format = FORMATS[name]
    state, constants, salience = prompt(format, side, rows)
    for wrong in (float("nan"), float("inf")):
        broken = rows.clone()
        broken[1, 0, 5, 3] = wrong
        with pytest.raises(InputError, match="not finite"):
            format.quantize(side, broken, constants, salience)
        with pytest.raises(InputError, match="not finite"):
            constants_of(format, side, broken)
    with pytest.raises(InputError, match="more than half precision holds"):
        format.quantize(side, rows * 1e6, constants, salience)
    with pytest.raises(InputError, match=r"cannot store torch\.int64"):
        format.quantize(side, rows.long(), constants, salience)
    with pytest.raises(InputError, match="do not go behind"):
        format.append(side, state, rows[:1, :, :1], constants, None)
    if name not in ("half", "int8", "fp8"):
        with pytest.raises(InputError, match=r"width|channels"):
            constants_of(format, side, rows[..., :33])
    if format.pooled:
        with pytest.raises(InputError, match="wants a salience"):
            format.quantize(side, rows, constants, salience[:, :, :7])
    if constants:
        with pytest.raises(InputError, match="calibrate"):
            format.quantize(side, rows, {}, salience)


def test_a_format_is_named_like_its_file_and_found_by_name():
    assert set(FORMATS) == {name for name, _ in BYTES}
    assert all(find_format(name) is FORMATS[name] for name in FORMATS)
    assert all(format.title and format.source for format in FORMATS.values())
    with pytest.raises(InputError, match="no cache format 'kiwi'") as error:
        find_format("kiwi")
    assert error.value.hint == "did you mean kivi?"


def test_settings_are_part_of_a_formats_text():
    text = "kivi{bits=4 window=32}"
    assert find_format(text).text == text and find_format("kivi{bits=2}").text == "kivi"
    assert all(format.text == name for name, format in FORMATS.items())
    assert find_format("kivi").finer().text == "kivi{bits=4}"
    for wrong, said in (
        ("kivi{bit=4}", "bits=2"),
        ("kivi{bits=four}", "bits=2"),
        ("half{a=1}", "no"),
    ):
        with pytest.raises(InputError) as error:
            find_format(wrong)
        assert said in str(error.value.expected)
    with pytest.raises(InputError, match="bits"):
        find_format("kivi{bits=3}")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("kivi", {"bits": 3}),
        ("kivi", {"group": 24}),
        ("kivi", {"window": 100}),
        ("zipcache", {"share": 1.0}),
        ("zipcache", {"gap": 1}),
        ("vidkv", {"window": 0}),
        ("vidkv", {"hard": 0.0}),
    ],
)
def test_settings_that_no_layout_has_are_refused(name, setting):
    with pytest.raises(InputError, match=name):
        dataclasses.replace(FORMATS[name], **setting)


def test_a_window_of_zipcache_needs_the_salience_of_the_rows_that_leave_it(rows):
    format = FORMATS["zipcache"]
    state, constants, _ = prompt(format, "key", rows)
    waiting = format.append("key", state, rows[:, :, :99], constants, None)
    with pytest.raises(InputError, match="100 rows leave the window"):
        format.append("key", waiting, rows[:, :, :1], constants, None)
    with pytest.raises(InputError, match="leave one of its two pools empty"):
        format.quantize("key", rows[:, :, :2], constants, salience_of(rows[:, :, :2]))
