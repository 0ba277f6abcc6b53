import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth

from tokopt.ir.errors import UnsupportedError
from tokopt.passes import ahead
from tokopt.passes.methods.method import Setting
from tokopt.passes.methods.pdrop import METHOD
from tokopt.passes.methods.registry import find_method
from tokopt.passes.oracle.oracle import run_oracle


def stages(layers: int, count: int, keep: int, group: int = 1) -> list[tuple[int, int]]:
    setting = Setting("decoder", layers, count, keep, group, consumer=True)
    return [(place.depth, place.keep) for place in METHOD.schedule(setting)]


def test_the_published_setting_keeps_half_at_each_of_three_layers() -> None:
    assert stages(32, 576, 72) == [(8, 288), (16, 144), (24, 72)]
    rows = [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert sum(rows) / 32 == 270  # the paper's average


@pytest.mark.parametrize(
    ("layers", "depths"),
    [(28, [7, 14, 21]), (40, [10, 20, 30]), (4, [1, 2, 3]), (2, [1]), (1, [1])],
)
def test_sites_are_scaled_to_the_depth(layers: int, depths: list[int]) -> None:
    placed = stages(layers, 576, 72)
    assert [depth for depth, _ in placed] == depths and placed[-1][1] == 72


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 150), group=st.sampled_from([1, 4]), data=st.data())
def test_counts_fall_with_depth_and_grow_with_the_last(
    count: int, group: int, data: st.DataObject
) -> None:
    count *= group
    keep = group * data.draw(st.integers(1, count // group))
    counts = [kept for _, kept in stages(32, count, keep, group)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == keep and counts[0] <= count
    assert all(kept % group == 0 for kept in counts)
    if keep < count:
        more = [kept for _, kept in stages(32, count, keep + group, group)]
        assert all(a <= b for a, b in zip(counts, more, strict=True))
    assert {kept for _, kept in stages(32, count, count, group)} == {count}


def test_the_score_is_the_last_row_of_the_nearest_layer_averaged_over_heads() -> None:
    taps = drawn_taps("decoder", layers=2, carried=True)
    layer = taps.layers[-1]
    query, key = layer.query.numpy().astype(float), layer.key.numpy().astype(float)
    for item in range(2):
        expected = np.zeros(14)
        for head in range(4):
            weights = np.exp(key[item, head // 2] @ query[item, head, 13] * layer.scale)
            expected += weights / weights.sum() / 4
        np.testing.assert_allclose(METHOD.score(taps)[item].numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_stage_reads_the_layer_behind_the_cut_as_the_library_computes_it(depth: int) -> None:
    family = analysed("llava")
    chosen = plan(f"decoder:{depth} pdrop 9")
    found = run_oracle(family.facts, chosen, every_input(family)[0], find_method).stages[0]
    expected = truth().decoder[depth][:, :, -1, :].mean(1)
    inside = found.candidates.numpy()
    np.testing.assert_allclose(found.raw.numpy()[inside], expected[inside], rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["llava_dynamic", "llava_explicit", "qwen"])
def test_its_stages_pass_every_gate(name: str) -> None:
    """Copies of the next layer read what earlier stages left, however attention is written."""
    family = analysed(name)
    done = checked(family, plan("decoder:1 pdrop 12, decoder:2 pdrop 8, decoder:3 pdrop 4"))
    assert failures(done, [every_input(family)[-1]]) == ""


def test_copies_that_read_a_wrong_stream_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded bug: the next layer's keys take the place of its queries."""
    copied = ahead._copied

    def wrong(work, wanted, value):  # type: ignore[no-untyped-def]
        query, key, *rest = copied(work, wanted, value)
        return [key, query, *rest]

    monkeypatch.setattr(ahead, "_copied", wrong)
    family = analysed("llava")
    done = checked(family, plan("decoder:2 pdrop 9"))
    assert "selection" in failures(done, [every_input(family)[0]])


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps("decoder", layers=0))


def test_kept_tokens_are_those_of_the_eager_attention() -> None:
    taps = analysed("llava").observed().stacks["decoder"].taps("decoder:2", 9)
    expected = truth().decoder[1][:, :, -1, :].mean(1)
    visual = truth().visual
    assert kept_rows(METHOD.score(taps).numpy(), visual, 9) == kept_rows(expected, visual, 9)
