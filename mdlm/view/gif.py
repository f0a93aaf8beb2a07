"""A trace as an animated GIF: one frame a step; the last one is shown longer."""

import io
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mdlm.generation.trace import RowTrace, Trace
from mdlm.view.frames import SHADES, Frame, Span, frames, width

COLUMNS, SIZE, MARGIN = 72, 15, 18
"""Cells of a line; size of the font and width of the border, in pixels."""
LAST_FRAME = 3000
"""Milliseconds for which the last frame is shown."""

Color = tuple[int, int, int]
PAPER, INK, FAINT, RED = (255, 255, 255), (28, 30, 34), (158, 163, 171), (200, 30, 30)
STOPS = ((245, 158, 78), (252, 232, 190), (214, 232, 250), (122, 178, 240))
"""Backgrounds of written tokens, from improbable to certain; interpolated between."""


def gif(trace: Trace, row: RowTrace, *, fps: float) -> bytes:
    """Returns the content of the file. Players show at most 50 frames a second."""
    steps = list(frames(trace, row, COLUMNS))
    canvas = _Canvas(lines=max(len(frame.lines) for frame in steps))
    pictures = [canvas.draw(frame, trace) for frame in steps]
    first, *others = (p.quantize(palette=palette(), dither=Image.Dither.NONE) for p in pictures)
    out = io.BytesIO()
    first.save(
        out,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=[round(1000 / fps)] * len(others) + [LAST_FRAME],
        loop=0,
    )
    return out.getvalue()


def shade_color(shade: int) -> Color:
    """Returns the background of a shade of confidence."""
    x = shade / (SHADES - 1) * (len(STOPS) - 1)
    i = min(int(x), len(STOPS) - 2)
    return mixed(STOPS[i], STOPS[i + 1], x - i)


def mixed(first: Color, second: Color, fraction: float) -> Color:
    """Returns a colour between two, with `fraction` of the second."""
    red, green, blue = (round(a + (b - a) * fraction) for a, b in zip(first, second, strict=True))
    return red, green, blue


def palette() -> Image.Image:
    """Returns the colours of all frames: each background, blended with the letters on it."""
    grounds = [PAPER, *map(shade_color, range(SHADES))]
    pairs = [(ground, INK) for ground in grounds] + [(PAPER, FAINT), (PAPER, RED)]
    pairs += [(shade_color(shade), RED) for shade in range(0, SHADES, 3)]
    colors = [mixed(*pair, i / 7) for pair in pairs for i in range(8)]
    image = Image.new("P", (1, 1))
    image.putpalette([value for color in colors for value in color])
    return image


class _Canvas:
    """Draws frames of `lines` lines on a grid of equal cells."""

    def __init__(self, lines: int):
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.font = ImageFont.truetype(str(folder / "DejaVuSansMono.ttf"), SIZE)
        self.bold = ImageFont.truetype(str(folder / "DejaVuSansMono-Bold.ttf"), SIZE)
        self.cell = round(self.font.getlength("0"))
        self.line = round(SIZE * 1.55)
        self.bottom = MARGIN + lines * self.line + MARGIN // 2
        self.shape = (2 * MARGIN + COLUMNS * self.cell, self.bottom + self.line + MARGIN)

    def draw(self, frame: Frame, trace: Trace) -> Image.Image:
        image = Image.new("RGB", self.shape, PAPER)
        pen = ImageDraw.Draw(image)
        for number, line in enumerate(frame.lines):
            x, y = MARGIN, MARGIN + number * self.line
            for span in line:
                self._span(pen, span, x, y)
                x += width(span.text) * self.cell
        self._caption(pen, frame, trace)
        return image

    def _span(self, pen: ImageDraw.ImageDraw, span: Span, x: int, y: int) -> None:
        right, low = x + width(span.text) * self.cell - 1, y + self.line - 3
        box = (x, y, right, low)
        if span.kind in ("written", "rewritten"):
            pen.rectangle((x, y, right - 1, low), fill=shade_color(span.shade))
        if span.kind == "remasked":
            pen.rectangle(box, outline=RED, width=2 if span.is_new else 1)
        elif span.kind == "rewritten":
            pen.line((x, low, right, low), fill=RED, width=2)
        if span.is_new and span.kind != "remasked":
            pen.rectangle(box, outline=INK)
        ink = {"open": FAINT, "noise": FAINT, "remasked": RED}.get(span.kind, INK)
        font = self.bold if span.kind == "given" else self.font
        for i, character in enumerate(span.text):
            pen.text((x + width(span.text[:i]) * self.cell, y + 1), character, ink, font)

    def _caption(self, pen: ImageDraw.ImageDraw, frame: Frame, trace: Trace) -> None:
        y, right = self.bottom, self.shape[0] - MARGIN
        pen.line((MARGIN, y - 5, right, y - 5), fill=FAINT)
        done = frame.step / max(trace.steps, 1)
        pen.line((MARGIN, y - 5, MARGIN + done * (right - MARGIN), y - 5), fill=INK, width=3)
        words = f"step {frame.step}/{trace.steps}   NFE {frame.nfe}   open {frame.open}"
        pen.text((MARGIN, y), words, INK, self.font)
        x = right - 2 * self.cell
        pen.text((x + self.cell, y), "1", FAINT, self.font)
        for shade in reversed(range(SHADES)):
            x -= self.cell
            pen.rectangle((x, y + 3, x + self.cell, y + SIZE), fill=shade_color(shade))
        pen.text((x - 17 * self.cell, y), "confidence 0.001", FAINT, self.font)
