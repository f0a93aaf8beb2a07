"""Waiting for data: reported where the loader is slow, none where it is not."""

import threading
import time

import jax
import pytest
import tiny

from mdlm.cli.progress import Progress
from mdlm.data.loader import TrainLoader
from mdlm.experiment.experiment import Training
from mdlm.experiment.model import Model
from mdlm.models.dit import DiT
from mdlm.runs.folder import RunFolder
from mdlm.train import loop
from mdlm.train.events import Began, Stepped
from mdlm.train.loop import Trainer

PAUSE = 0.15
"""Seconds a batch takes where the loader is slow; a step of the tiny network takes far less."""


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def trained(tmp_path, name: str, steps: int = 12) -> list[dict[str, float]]:
    """Metrics of the logged steps, without the first, which compiles."""
    text = tiny.write_text(tmp_path / "text.txt")
    experiment = tiny.experiment(
        text,
        network=DiT(width=16, depth=1, heads=1, cond_dim=8),
        train=Training(steps=steps, batch_size=16, log_every=4, eval_rows=16),
    )
    folder = RunFolder(tmp_path / name)
    folder.begin("", [], experiment)
    dataset, tx = experiment.data.load(), experiment.optimizer.build(steps)
    trainer = Trainer(Model.on(experiment, dataset), experiment.mesh.build(), tx, dataset, folder)
    found = [event.metrics for event in trainer.run() if isinstance(event, Stepped)]
    # The last is read after an evaluation, which no speed is given for.
    return [metrics for metrics in found[1:] if "tokens_per_second" in metrics]


@pytest.mark.slow
def test_a_slow_loader_is_reported_and_changes_nothing_else(tmp_path, monkeypatch, one_device):
    fast = trained(tmp_path, "fast")
    assert fast and all(0 <= metrics["data_wait"] < 0.1 for metrics in fast), fast
    plain = TrainLoader.batch_at

    def slow(self, position):
        time.sleep(PAUSE)
        return plain(self, position)

    monkeypatch.setattr(TrainLoader, "batch_at", slow)
    found = trained(tmp_path, "slow")
    assert found and all(0.5 < metrics["data_wait"] <= 1 for metrics in found), found
    assert [m["loss"] for m in found] == [m["loss"] for m in fast]


@pytest.mark.slow
def test_the_thread_places_batches_on_the_mesh(tmp_path, monkeypatch):
    """On all eight devices; the step finds them where they are due."""

    seen = []
    plain = loop.put_on_mesh

    def watched(mesh, rows):
        placed = plain(mesh, rows)
        seen.append((threading.current_thread().name, len(placed["tokens"].sharding.device_set)))
        return placed

    monkeypatch.setattr(loop, "put_on_mesh", watched)
    trained(tmp_path, "run", steps=4)
    assert set(seen) == {("prefetch", jax.device_count())} and jax.device_count() == 8


@pytest.mark.parametrize("share, words", [(0.25, "waiting for data 25%"), (0.01, None)])
def test_the_progress_line_says_so_where_it_matters(share, words, capsys):
    progress = Progress()
    progress.tty = False
    progress._spoken = -100.0
    progress.show(Began(0, 10, 5, 1))
    progress._spoken = -100.0
    progress.show(Stepped(4, {"loss": 1.0, "tokens_per_second": 7.0, "data_wait": share}))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step 4/10: smoothed loss 1.000, 7 tokens/s")
    assert (words in line) if words else ("waiting" not in line)
