"""A trace in the terminal: a replay in colour, or a table of its steps."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from typing import TextIO

from mdlm.generation.trace import RowTrace, Trace
from mdlm.view.frames import COVERS, SHADES, Frame, Span, frames, text_of

RAMP = (208, 215, 222, 223, 230, 195, 153, 117, 111, 75)
"""Backgrounds from improbable to certain, of the 256 colours; black text is readable on all."""

RESET, HIDE, SHOW = "\x1b[0m", "\x1b[?25l", "\x1b[?25h"
STYLES = {"given": "1", "open": "2", "remasked": "1;31", "noise": "2;3"}
"""Bold, faint, bold red, faint italics."""
LEGEND_WIDTH = len("  confidence 0.001   1  x remasked") + 2 * SHADES


def show(trace: Trace, row: RowTrace, out: TextIO, *, fps: float) -> None:
    """Shows the replay on a terminal, the table elsewhere or if NO_COLOR (no-color.org) is set."""
    if out.isatty() and not os.environ.get("NO_COLOR"):
        columns, lines = shutil.get_terminal_size()
        replay(trace, row, out, fps=fps, columns=columns, lines=lines)
    else:
        out.writelines(f"{line}\n" for line in summary(trace, row))


def summary(trace: Trace, row: RowTrace) -> Iterator[str]:
    """Yields a table of the steps that changed this text, then the text."""
    yield f"{trace.sampler}: {len(row.start)} tokens, {trace.steps} steps, NFE {trace.nfe[-1]}"
    yield f"{'step':>6} {'NFE':>6} {'written':>8} {'remasked':>10} {'open':>6}  confidence"
    for frame in frames(trace, row, columns=80):
        if not (frame.written or frame.remasked) and frame.step not in (0, trace.steps):
            continue
        confidence = "" if math.isnan(frame.confidence) else f"{frame.confidence:11.2g}"
        yield (
            f"{frame.step:6} {frame.nfe:6} {frame.written:8} {frame.remasked:10} {frame.open:6}"
            f" {confidence}"
        ).rstrip()
    yield ""
    yield text_of(trace, row)


def replay(
    trace: Trace,
    row: RowTrace,
    out: TextIO,
    *,
    fps: float,
    columns: int,
    lines: int,
    sleep=time.sleep,
) -> None:
    """Draws each step over the one before, `fps` of them a second.

    A text taller than the terminal is scrolled to its changes. The last step stays on the screen.
    """
    height = max(1, lines - 3)
    drawn = top = 0
    # The code that clears the rest of a line would delete a character in the last column.
    columns = max(1, columns - 1)
    out.write(HIDE)
    try:
        for frame in frames(trace, row, columns):
            top = _top(frame, top, height)
            shown = [painted(line) for line in frame.lines[top : top + height]]
            shown += ["", _caption(frame, trace, columns)]
            cursor_up = f"\x1b[{drawn - 1}F" if drawn > 1 else "\r"
            # Overwriting each line, instead of clearing the screen, avoids flicker.
            out.write(cursor_up + "\n".join(line + "\x1b[K" for line in shown) + "\x1b[J")
            out.flush()
            drawn = len(shown)
            if frame.step < trace.steps:
                sleep(1 / fps)
    finally:
        out.write(f"{RESET}{SHOW}\n")
        out.flush()


def painted(line: tuple[Span, ...]) -> str:
    """Returns a line with the colours of its confidence; new tokens are underlined."""
    return "".join(f"\x1b[{_style(span)}m{span.text}{RESET}" for span in line)


def _style(span: Span) -> str:
    style = STYLES.get(span.kind, f"38;5;16;48;5;{RAMP[span.shade]}")
    if span.kind == "rewritten":
        style += ";3"
    return style + (";1;4" if span.is_new else "")


def _caption(frame: Frame, trace: Trace, columns: int) -> str:
    words = f"step {frame.step}/{trace.steps}  NFE {frame.nfe}  open {frame.open}"
    if len(words) + LEGEND_WIDTH > columns:
        return words[:columns]
    bar = "".join(f"\x1b[48;5;{color}m  " for color in RAMP)
    mark = f"\x1b[{STYLES['remasked']}m{COVERS['remasked']}{RESET}"
    return f"{words}  confidence 0.001 {bar}{RESET} 1  {mark} remasked"


def _top(frame: Frame, top: int, height: int) -> int:
    """Returns the first line to show: scrolled only as far as needed to show the changes."""
    changed = [i for i, line in enumerate(frame.lines) if any(span.is_new for span in line)]
    if changed and not top <= changed[-1] < top + height:
        top = changed[-1] - height + 1 if changed[-1] >= top + height else changed[-1]
    return max(0, min(top, len(frame.lines) - height))
