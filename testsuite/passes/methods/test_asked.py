import pytest

from tokopt.ir.errors import InputError
from tokopt.passes.methods.asked import asked_method


def test_a_name_alone_has_no_options() -> None:
    method, options = asked_method("vtc_cls")
    assert (method.name, dict(options)) == ("vtc_cls", {})


def test_options_are_read_as_what_they_are() -> None:
    assert asked_method("vtc_cls{start=3}")[1] == {"start": 3}
    assert asked_method("downsample{grid=12x12}")[1] == {"grid": "12x12"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vtc_cls{begin=3}", "vtc_cls has no option 'begin'"),
        ("stride{grid=3x3}", "stride has no option 'grid'"),
        ("vtc_cls{start=3},stride", "2 methods"),
        ("vtc_cls{start", "expected"),
        ("vtc_clss{start=3}", "vtc_clss"),
        ("vtc_cls{start=[3 4]}", "start is a list or a table"),
    ],
)
def test_what_is_not_known_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        asked_method(text)
