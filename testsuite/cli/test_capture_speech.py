import pytest
from testsuite.zoo import whisper

from tokopt.cli.capture_request import Request
from tokopt.cli.capture_speech import prepare
from tokopt.ir.errors import InputError


def test_sound_and_ids_are_traced_with_a_free_batch_and_length() -> None:
    free = Request(prompt_length=9, dynamic=frozenset({"batch", "length"}))
    case = prepare(whisper.model("sdpa", 0), free, {})
    assert [tuple(t.shape) for t in case.inputs] == [(2, 20, 46), (2, 9)]
    assert {tuple(ids.shape) for _, ids in case.others} == {(2, 9), (1, 9), (3, 16)}
    assert max(case.differences(case.trace()).values()) <= 1e-5


@pytest.mark.parametrize(
    "request_",
    [Request(images=2), Request((4, 4)), Request(frames=1), Request(padding=True)],
)
def test_what_has_no_meaning_for_sound_is_refused(request_: Request) -> None:
    with pytest.raises(InputError, match="hears sound"):
        prepare(whisper.model("sdpa", 0), request_, {})


@pytest.mark.parametrize("length", [1, 41])
def test_a_length_the_decoder_cannot_have_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="2 to 40"):
        prepare(whisper.model("sdpa", 0), Request(prompt_length=length), {})
