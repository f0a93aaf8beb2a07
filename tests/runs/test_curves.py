"""The picture of a run: drawn from its log, also from logs that lack what newer ones have."""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from mdlm.runs import curves


@pytest.mark.parametrize("title", ["tiny (runs/$lr_$wd)", r"a \frac{1} $", "b\udcff"])
def test_the_title_is_text(tmp_path, title):
    """`$...$` is no mathematics, and a file name need not be UTF-8."""
    entry = {"kind": "train", "step": 5, "loss": 2.0, "nelbo": 2.0, "learning_rate": 1e-3}
    curves.draw([entry], tmp_path / "curves.png", title)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("errors", [{}, {"nats per token stderr_rows": 0.25}])
def test_points_have_their_standard_errors(errors):
    axes = Figure().subplots()
    entries = [{"kind": "valid", "step": s, "nats per token": 3.0, **errors} for s in (1, 2)]
    curves._evaluations(axes, entries)
    (container,) = axes.containers
    assert isinstance(container, ErrorbarContainer)
    (bars,) = container.lines[2]
    heights = [np.ptp(ends[:, 1]) for ends in bars.get_segments() if len(ends)]
    assert heights == pytest.approx([0.5, 0.5] if errors else [])


def test_a_run_that_has_only_begun_is_drawn(tmp_path):
    curves.draw([], tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").stat().st_size > 1000
