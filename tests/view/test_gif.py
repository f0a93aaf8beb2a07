"""The animation: a frame for each step, and the colours that its legend shows."""

import io

import made_trace
import numpy as np
from PIL import Image

from mdlm.view.frames import SHADES
from mdlm.view.gif import LAST_FRAME, RED, gif, shade_color


def opened(row=0, fps=8):
    trace = made_trace.trace()
    return Image.open(io.BytesIO(gif(trace, trace.rows[row], fps=fps)))


def pictures(image):
    for number in range(image.n_frames):
        image.seek(number)
        yield np.asarray(image.convert("RGB"), int), image.info["duration"]


def area(picture, color):
    """Pixels of a colour."""
    return (np.abs(picture - np.array(color)).max(-1) == 0).sum()


def test_there_is_a_frame_for_each_step_and_the_last_one_is_shown_longer():
    image = opened(fps=5)
    found = list(pictures(image))
    assert image.format == "GIF" and len(found) == 6
    assert [duration for _, duration in found] == [200] * 5 + [LAST_FRAME]
    assert image.info["loop"] == 0
    for (before, _), (after, _) in zip(found, found[1:], strict=False):
        assert (before != after).any()


def test_colours_show_confidence_and_remasked_tokens():
    found = [picture for picture, _ in pictures(opened())]
    certain = [area(picture, shade_color(SHADES - 1)) for picture in found]
    letter = 60  # pixels of a cell's background beside its letter, at least
    # " cat" (0.9) stands in steps 1 and 2, the line break (1.0) from step 2 on.
    assert certain[0] + 4 * letter < certain[1] < certain[2] - letter
    assert certain[2] - 4 * letter > certain[3] == certain[4] == certain[5]
    reds = [area(picture, RED) for picture in found]
    assert reds[:3] == [0, 0, 0] and reds[3] > reds[4] > reds[5] > 0  # framed, then underlined
    assert area(found[4], shade_color(0)) > area(found[3], shade_color(0)) + 17 * letter
