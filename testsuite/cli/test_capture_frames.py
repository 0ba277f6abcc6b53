import pytest
from testsuite.zoo import llava_next_video

from tokopt.cli.capture_frames import DEFAULT_FRAMES, frames
from tokopt.cli.capture_request import Request
from tokopt.ir.errors import InputError


def test_a_video_is_its_frames_and_their_pooled_rows() -> None:
    model = llava_next_video.model("sdpa", 0)
    assert frames(model, Request(frames=3), {}).count == 3 * 9
    assert frames(model, Request(), {}).item == (DEFAULT_FRAMES, 3, 48, 48)


def test_several_videos_in_a_prompt_are_refused() -> None:
    with pytest.raises(InputError, match="one video per prompt"):
        frames(llava_next_video.model("sdpa", 0), Request(images=2), {})
