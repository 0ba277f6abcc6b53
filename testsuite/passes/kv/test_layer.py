"""Keys and values of a layer lie in one order."""

import pytest
import torch
from testsuite.passes.kv.rows import rows_like_a_cache, salience_of

from tokopt.ir.errors import InputError
from tokopt.passes.kv.layer import chosen_layer
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.kv.samples import Samples
from tokopt.passes.kv.zipcache import ZipCache

POOLED = sorted(name for name, format in FORMATS.items() if format.pooled)


def attended(query, keys, values):
    return (query @ keys.transpose(2, 3) / 8).softmax(3) @ values


@pytest.mark.parametrize("name", POOLED)
def test_attention_over_pools_is_that_over_the_rows_in_their_order(name):
    rows, values = rows_like_a_cache(300), rows_like_a_cache(300, seed=8)
    format, salience = FORMATS[name], salience_of(rows)
    query = torch.randn(2, 2, 4, 64, generator=torch.Generator().manual_seed(0))
    found = chosen_layer(
        {"key": format, "value": format}, {"key": Samples([rows]), "value": Samples([values])}
    )
    back = {}
    for side, given in (("key", rows), ("value", values)):
        one = found[side]
        state = one.format.quantize(side, given, one.constants, salience)
        back[side] = one.format.dequantize(side, state, one.constants)
        assert one.format == format
        arranged = format.arrange(given, salience)
        assert not torch.equal(arranged, given)
    pooled = attended(query, format.arrange(rows, salience), format.arrange(values, salience))
    assert torch.allclose(pooled, attended(query, rows, values), atol=1e-5)
    near = (attended(query, back["key"], back["value"]) - pooled).norm() / pooled.norm()
    assert near < 0.9  # with keys and values of different rows it is as far as their own size
    mixed = attended(query, back["key"], back["value"].roll(1, 2))
    assert (mixed - pooled).norm() > 1.2 * near * pooled.norm()


def test_a_side_that_leaves_the_pools_takes_the_other_with_it():
    rows, outlier = rows_like_a_cache(300), rows_like_a_cache(300)
    outlier[:, :, 5] *= 500
    for side, other in (("key", "value"), ("value", "key")):
        samples = {side: Samples([outlier]), other: Samples([rows])}
        format = FORMATS["zipcache"]
        found = chosen_layer({"key": format, "value": format}, samples)
        assert found[side].note.startswith("zipcache is off by")
        assert found[other].format == FORMATS["int8"]
        assert "rows lie in their own order: int8 instead of zipcache" in found[other].note


def test_formats_that_order_rows_each_their_own_way_are_refused():
    samples = {"key": Samples([rows_like_a_cache(9)]), "value": Samples([rows_like_a_cache(9)])}
    for key, value in (("int8", "zipcache"), ("zipcache", "vidkv")):
        with pytest.raises(InputError, match="do not lie in one order"):
            chosen_layer({"key": FORMATS[key], "value": FORMATS[value]}, samples)
    with pytest.raises(InputError, match="do not lie in one order"):
        chosen_layer({"key": ZipCache(), "value": ZipCache(share=0.5)}, samples)
    apart = chosen_layer({"key": FORMATS["int8"], "value": FORMATS["int4"]}, samples)
    assert [apart[side].format.name for side in ("key", "value")] == ["int8", "int4"]
