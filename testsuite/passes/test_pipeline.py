import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.passes.samples import KNOWN, DropRelu, Nothing, Settings

from tokopt.ir.errors import InputError
from tokopt.passes.base import Pass
from tokopt.passes.normalize import Normalize
from tokopt.passes.pipeline import describe_pass, parse_pipeline, print_pipeline

TEXT = st.text(max_size=12)
NUMBER = st.floats(allow_nan=False)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
SETTINGS = st.builds(
    Settings,
    site=TEXT | st.sampled_from(["none", "true", "14", "1e3", "inf", "vision:end", ""]),
    keep=st.integers(),
    ratio=NUMBER,
    exact=st.booleans(),
    mode=st.sampled_from(["full", "kept", "last"]),
    budget=st.none() | NUMBER,
    free=st.none() | st.integers() | NUMBER | st.booleans() | TEXT,
    depths=st.lists(st.integers(), max_size=3).map(tuple),
    names=st.lists(TEXT, max_size=3).map(tuple),
    method_options=st.dictionaries(KEYS, st.integers() | NUMBER | TEXT, max_size=3),
)


def read(text: str) -> tuple[Pass, ...]:
    return parse_pipeline(text, KNOWN)


def refused(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        read(text)
    return caught.value


def column(error: InputError) -> int:
    """Return the column the caret points at, after checking that the words agree."""
    first, excerpt, caret = (error.where or "").splitlines()
    assert len(excerpt) >= caret.index("^") - 1
    assert first == f"pipeline, column {caret.index('^') - 3}"
    return caret.index("^") - 3


@settings(max_examples=150, deadline=None)
@given(st.lists(SETTINGS | st.just(Nothing()) | st.just(DropRelu()), max_size=4))
def test_what_is_printed_is_read_back(passes: list[Pass]) -> None:
    text = print_pipeline(passes)
    again = read(text)
    assert again == tuple(passes)
    assert print_pipeline(again) == text
    for was, now in zip(passes, again, strict=True):
        assert repr(was) == repr(now)  # 1, 1.0 and True are equal and not the same


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='abn,{}[]="\\ 1=-:\n', max_size=30) | st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_position(text: str) -> None:
    try:
        read(text)
    except InputError as error:
        assert error.where is not None and error.where.startswith("pipeline, column ")


def test_the_form_of_the_readme_is_read_and_printed_verbatim() -> None:
    text = "nothing,settings{site=vision:end keep=14 method-options={temperature=0.5 seed=1}}"
    passes = read(text)
    assert passes == (
        Nothing(),
        Settings("vision:end", 14, method_options={"temperature": 0.5, "seed": 1}),
    )
    assert print_pipeline(passes) == text


def test_options_at_their_default_are_not_printed() -> None:
    assert print_pipeline([Settings("a", 1, ratio=0.5)]) == "settings{site=a keep=1}"


def test_texts_that_look_like_something_else_are_quoted() -> None:
    assert print_pipeline([Settings("14", 1)]) == 'settings{site="14" keep=1}'
    assert (
        print_pipeline([Settings("a b", 1, free="none")])
        == 'settings{site="a b" keep=1 free="none"}'
    )


def test_white_space_and_underscores_are_free() -> None:
    text = "  drop_relu ,\n settings { site = a\n keep=1  depths=[ 1 2 ] method_options={} } "
    assert read(text) == (DropRelu(), Settings("a", 1, depths=(1, 2)))


def test_no_text_is_no_pass() -> None:
    assert read(" ") == ()


def test_the_registered_passes_are_the_default() -> None:
    assert parse_pipeline("normalize") == (Normalize(),)


def test_numbers_are_typed_by_their_field() -> None:
    (step,) = read("settings{site=3 keep=3 ratio=3 free=3}")
    assert repr(step).startswith("Settings(site='3', keep=3, ratio=3.0")
    assert isinstance(step, Settings) and isinstance(step.free, int)
    (step,) = read("settings{site=a keep=-3 budget=-inf free=3.0}")
    assert isinstance(step, Settings) and step.budget == -math.inf and isinstance(step.free, float)


@pytest.mark.parametrize(
    ("text", "at", "what", "expected", "hint"),
    [
        (
            "nothing,nothin",
            9,
            "there is no pass 'nothin'",
            "one of drop-relu, nothing",
            "'nothing'",
        ),
        ("settings{site=a kep=1}", 17, "no option 'kep'", "one of site, keep, ratio", "'keep'"),
        ("nothing{a=1}", 9, "no option 'a'", "no options", ""),
        ("settings{site=a}", 1, "needs the option 'keep'", "keep=…", ""),
        ("settings{site=a keep=many}", 22, "option 'keep'", "an integer", ""),
        ("settings{site=a keep=1.5}", 22, "option 'keep'", "an integer", ""),
        ('settings{site=a keep="1"}', 22, "option 'keep'", "an integer", ""),
        ("settings{site=a keep=1 mode=most}", 29, "option 'mode'", "one of full, kept, last", ""),
        ("settings{site=a keep=1 exact=1}", 30, "option 'exact'", "true or false", ""),
        ("settings{site=a keep=1 budget=x}", 31, "option 'budget'", "a number or none", ""),
        ("settings{site=a keep=1 depths=1}", 31, "option 'depths'", "a list [a b]", ""),
        ("settings{site=a keep=1 depths=[1 x]}", 31, "option 'depths'", "an integer", ""),
        ("settings{site=a keep=1 method-options=[]}", 39, "'method-options'", "a table", ""),
        ("settings{site=a site=b keep=1}", 17, "'site' is given twice", "", ""),
        ("settings{method-options={} method_options={} site=a keep=1}", 28, "given twice", "", ""),
        ("settings{site=a keep=1", 23, "the end of the text", "key=value or '}'", ""),
        ("settings{site=a keep 1}", 22, "'1' after 'keep'", "'='", ""),
        ("settings{site=}", 15, "'}' instead of a value", "a word", ""),
        ('settings{site="a}', 15, "a quoted text does not end", "", ""),
        ("nothing nothing", 9, "'n' after 'nothing'", "a comma", ""),
        ("nothing,", 9, "the end of the text where a name should be", "a name", ""),
        ("nothing{}}", 10, "'}' after 'nothing'", "a comma", ""),
    ],
)
def test_an_error_points_at_its_column(
    text: str, at: int, what: str, expected: str, hint: str
) -> None:
    error = refused(text)
    assert column(error) == at
    assert what in error.what
    assert expected in (error.expected or "")
    assert hint in (error.hint or "") and bool(hint) == bool(error.hint)


def test_a_long_pipeline_is_shown_around_the_error() -> None:
    error = refused("nothing," * 40 + "wrong" + ",nothing" * 40)
    lines = (error.where or "").splitlines()
    assert lines[0] == "pipeline, column 321" and len(lines[1]) <= 104
    assert lines[1][lines[2].index("^") :].startswith("wrong")


def test_a_pass_is_described_with_its_options() -> None:
    text = describe_pass(Settings)
    assert text.startswith(
        "settings{site=<a text> keep=<an integer> ratio=0.5 exact=false mode=full"
    )
