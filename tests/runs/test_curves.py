"""The picture of a run."""

import pytest

from mdlm.runs import curves


@pytest.mark.parametrize("title", ["tiny (runs/$lr_$wd)", r"a \frac{1} $", "b\udcff"])
def test_the_title_is_text(tmp_path, title):
    """`$...$` is no mathematics, and a file name need not be UTF-8."""
    entry = {"kind": "train", "step": 5, "loss": 2.0, "nelbo": 2.0, "learning_rate": 1e-3}
    curves.draw([entry], tmp_path / "curves.png", title)
    assert (tmp_path / "curves.png").stat().st_size > 1000
