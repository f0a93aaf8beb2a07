"""The frames of a trace, and their look in a terminal."""

import io
import re

import made_trace
import pytest

from mdlm.errors import InputError
from mdlm.view import terminal
from mdlm.view.frames import SHADES, frames, row_of, shade_of, width

SGR = re.compile(r"\x1b\[[0-9;]*m")


def kinds(frame):
    return {span.text: span.kind for line in frame.lines for span in line}


def plain(frame):
    return ["".join(span.text for span in line) for line in frame.lines]


def test_each_step_is_a_frame_with_the_state_of_each_position():
    trace = made_trace.trace()
    shown = list(frames(trace, trace.rows[0], columns=40))
    assert [frame.step for frame in shown] == list(range(6))
    # Open positions are as wide as their last token: "日本" takes four cells.
    assert plain(shown[0]) == ["The" + "·" * 9, "·" * (17 + 4)]
    assert plain(shown[1]) == ["The cat a very long token·", "·" * 21]
    assert plain(shown[2])[0] == "The cat a very long token↵"
    assert plain(shown[3])[0] == "The×××× sat↵"
    assert plain(shown[5]) == ["The日本 sat↵", "</script><b>&amp;\ufffd[2J"]
    assert kinds(shown[1])[" cat"] == "written" and kinds(shown[3])["××××"] == "remasked"
    assert kinds(shown[3])[" sat"] == kinds(shown[5])["日本"] == "rewritten"
    assert kinds(shown[5])["The"] == "given" and kinds(shown[0])["····"] == "open"
    assert [frame.open for frame in shown] == [5, 3, 2, 3, 2, 0]
    assert [(frame.written, frame.remasked) for frame in shown] == [
        (0, 0),
        (2, 0),
        (1, 0),
        (1, 1),
        (1, 0),
        (2, 0),
    ]
    assert shown[1].confidence == pytest.approx(0.46)
    new = [{s.text for line in frame.lines for s in line if s.is_new} for frame in shown]
    assert new[0] == set() and new[3] == {"××××", " sat"}
    shades = {span.text: span.shade for span in shown[5].lines[0]}
    assert shades["日本"] == shade_of(0.05) and shades[" sat"] == shade_of(0.5) > shades["日本"]


def test_noise_of_the_prior_counts_as_open():
    trace = made_trace.trace()
    shown = list(frames(trace, trace.rows[1], columns=40))
    assert plain(shown[0]) == [" cat sat"] and set(kinds(shown[0]).values()) == {"noise"}
    assert kinds(shown[2]) == {" cat": "noise", " a very long token": "written"}
    assert [frame.open for frame in shown[:3]] == [2, 2, 1]


def test_shades_are_equal_steps_of_the_logarithm():
    assert [shade_of(p) for p in (0, 1e-9, 1e-3, 1)] == [0, 0, 0, SHADES - 1]
    assert [shade_of(p) for p in (0.0101, 0.101, 0.3)] == [3, 6, 8]


@pytest.mark.parametrize("columns", [1, 5, 12, 40])
def test_no_line_is_wider_than_asked(columns):
    trace = made_trace.trace()
    whole = "".join(plain(list(frames(trace, trace.rows[0], columns=200))[5]))
    for frame in frames(trace, trace.rows[0], columns):
        assert all(width(line) <= max(columns, 2) for line in plain(frame))
    assert "".join(plain(frame)) == whole


def test_a_row_that_does_not_exist_is_refused():
    trace = made_trace.trace()
    assert row_of(trace, 2) is trace.rows[1]
    for number in (0, 3, -1):
        with pytest.raises(InputError, match=f"--row {number}: must be from 1 to 2"):
            row_of(trace, number)


def test_the_summary_has_a_line_for_each_step_and_no_colour():
    trace = made_trace.trace()
    lines = list(terminal.summary(trace, trace.rows[0]))
    assert "Made(by='hand')" in lines[0] and "NFE 5" in lines[0]
    assert lines[5].split() == ["3", "3", "1", "1", "3", "0.5"]
    assert lines[2].split() == ["0", "0", "0", "0", "5"]
    assert lines[-1].startswith("The日本 sat\n") and "\x1b" not in "".join(lines)


def test_steps_that_changed_nothing_have_no_line():
    trace = made_trace.trace()
    steps = [line.split()[0] for line in list(terminal.summary(trace, trace.rows[1]))[2:-2]]
    assert steps == ["0", "2", "5"]


def replayed(lines=24, columns=60, row=0):
    trace, out, pauses = made_trace.trace(), io.StringIO(), []
    terminal.replay(
        trace,
        trace.rows[row],
        out,
        fps=4,
        columns=columns,
        lines=lines,
        sleep=pauses.append,
    )
    return out.getvalue(), pauses


def test_the_replay_draws_each_step_over_the_last():
    shown, pauses = replayed()
    assert pauses == [0.25] * 5
    assert shown.startswith(terminal.HIDE) and shown.endswith(terminal.SHOW + "\n")
    drawn = shown.removeprefix(terminal.HIDE).split("\x1b[J")[:-1]
    assert len(drawn) == 6
    for before, frame in zip(drawn, drawn[1:], strict=False):
        # Up to the first line of the frame before, and no further.
        assert frame.startswith(f"\x1b[{before.count(chr(10))}F")
    last = SGR.sub("", drawn[-1]).replace("\x1b[K", "").split("\n")
    assert last[0].endswith("The日本 sat↵") and last[-1].startswith("step 5/5  NFE 5  open 0")
    # The token that spells the code to clear the screen is made harmless.
    assert "\x1b[2J" not in shown
    assert f"\x1b[38;5;16;48;5;{terminal.RAMP[shade_of(0.9)]};1;4m cat" in drawn[1]
    assert "\x1b[1;31;1;4m××××" in drawn[3] and "\x1b[1;31m××××" in drawn[4]


def test_a_small_terminal_is_scrolled_to_the_changes():
    shown, _ = replayed(lines=5, columns=13)
    drawn = [SGR.sub("", frame) for frame in shown.split("\x1b[J")[:-1]]
    assert all(frame.count("\n") < 4 for frame in drawn)
    assert "long" in drawn[1] and "×" in drawn[3] and "script" in drawn[4]
    assert "The" in drawn[0] + drawn[3] and "The" not in drawn[1] + drawn[4]


def test_colour_is_for_terminals_without_no_color(monkeypatch):
    trace = made_trace.trace()

    def shown(is_terminal: bool) -> bool:
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: is_terminal)
        terminal.show(trace, trace.rows[0], out, fps=1e6)
        return "\x1b" in out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown(True) and not shown(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shown(True)
