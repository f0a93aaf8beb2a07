"""What is shown elsewhere: one run at Weights & Biases for each folder, with all that it logs."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.models import DiT
from mdlm.runs import writers
from mdlm.runs.log import Log
from mdlm.runs.writers import TensorBoard, WeightsAndBiases, check_packages
from mdlm.samplers import Ancestral
from mdlm.train.session import Session


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, and what it was told: settings of `init`, and logged values."""
    told = SimpleNamespace(settings=[], logged=[])

    def init(**settings):
        told.settings.append(settings)
        log = lambda values, step: told.logged.append((step, values))
        return SimpleNamespace(log=log, finish=lambda: None)

    package = SimpleNamespace(
        __spec__=SimpleNamespace(),  # by which it counts as installed
        init=init,
        Image=lambda path: ("image", path),
        Table=lambda columns, data: ("table", columns, data),
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    return told


def test_each_folder_is_one_run_whatever_its_path(wandb, tmp_path, monkeypatch):
    experiment = tiny.experiment(tmp_path / "text.txt")
    for name in ("a", "b"):
        (tmp_path / name / "runs" / "tiny").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        relative = (tmp_path / name / "runs" / "tiny").relative_to(tmp_path / name)
        WeightsAndBiases(relative, "p", experiment)
        WeightsAndBiases(relative.absolute(), "p", experiment)
    first, first_again, second, _ = (settings["id"] for settings in wandb.settings)
    assert first == first_again != second
    settings = wandb.settings[0]
    assert settings["group"] == "tiny" and settings["resume"] == "allow"
    assert settings["tags"] == ["DiT", "Masked", "Nelbo", "AdamW"]


def test_numbers_samples_and_pictures_are_sent(wandb, tmp_path):
    log = Log(tmp_path, writes=True)
    log.writers = (WeightsAndBiases(tmp_path, "p", tiny.experiment(tmp_path / "text.txt")),)
    log.add("valid", 3, {"nats": 2.0, "nats stderr": None, "protocol": "valid", "by": [1.0, 2.0]})
    log.add_samples(3, ["one", "two"])
    log.add_picture(3, tmp_path / "curves.png")
    (protocol, table) = "valid", wandb.logged.pop(1)
    assert table == (
        3,
        {"valid/table": ("table", ["step", "nats", "protocol"], [[3, 2.0, protocol]])},
    )
    assert wandb.logged == [
        (3, {"valid/nats": 2.0, "valid/by/0": 1.0, "valid/by/1": 2.0}),
        (3, {"samples": ("table", ["step", "number", "text"], [[3, 1, "one"], [3, 2, "two"]])}),
        (3, {"curves": ("image", str(tmp_path / "curves.png"))}),
    ]
    line = {"kind": "valid", "step": 3, "nats": 2.0, "nats stderr": None, "protocol": "valid"}
    assert line.items() <= log.metrics()[0].items()


def test_evaluations_are_a_table_with_a_row_for_each(wandb, tmp_path):
    """Also those of earlier starts; a column that is empty is left out."""
    log = Log(tmp_path, writes=True)
    log.add("valid", 3, {"nats": 2.0, "nats stderr": None, "protocol": "a | b\nc"})
    log.add("train", 4, {"loss": 1.0})
    log = Log(tmp_path, writes=True)
    log.writers = (WeightsAndBiases(tmp_path, "p", tiny.experiment(tmp_path / "text.txt")),)
    log.add("train", 5, {"loss": 1.0})
    log.add("valid", 6, {"nats": float("nan"), "bits": 1.5, "protocol": "d"})
    assert [sorted(values) for _, values in wandb.logged] == [
        ["train/loss"],
        ["valid/bits", "valid/nats"],
        ["valid/table"],
    ]
    columns = ["step", "nats", "protocol", "bits"]
    rows = [[3, 2.0, "a | b\nc", None], [6, None, "d", 1.5]]
    assert wandb.logged[-1] == (6, {"valid/table": ("table", columns, rows)})
    assert writers.markdown(columns, rows) == (
        "| step | nats | protocol | bits |\n"
        "|---|---|---|---|\n"
        "| 3 | 2.0000 | a \\| b c |  |\n"
        "| 6 |  | d | 1.5000 |\n"
    )


def test_a_training_run_shows_samples_tables_and_curves(wandb, tmp_path):
    pytest.importorskip("tensorboardX")
    text = tiny.write_text(tmp_path / "text.txt")
    network = DiT(width=16, depth=1, heads=1, cond_dim=8)
    e = tiny.experiment(text, network=network, train=Training(steps=2, batch_size=16))
    e = replace(e, sampler=Ancestral(steps=2))
    session = Session(
        e, tmp_path / "run", source=tiny.FILE.format(text=str(text)), tensorboard=True, wandb="p"
    )
    list(session.train())
    names = {name for _, values in wandb.logged for name in values}
    assert {"samples", "valid/table", "curves"} <= names
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    found = shown(events)
    assert {"samples/1", "valid/table", "curves"} <= set(found)
    (line,) = [line for line in session.folder.log.metrics() if line["kind"] == "valid"]
    assert f"| {line['nats per token']:.4f} |" in found["valid/table"]
    assert line["protocol"] in found["valid/table"]


def shown(events) -> dict[str, str]:
    """The texts in a file of events, by tag; nothing for a tag of another kind."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = events.read_bytes(), 0, {}
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += 12 + size + 4
        for value in event.summary.value:
            tag = value.tag.removesuffix("/text_summary")
            found[tag] = b"".join(value.tensor.string_val).decode()
    return found


def test_tensorboard_gets_them_too(tmp_path):
    pytest.importorskip("tensorboardX")
    from PIL import Image

    Image.new("RGBA", (4, 3)).save(tmp_path / "curves.png")
    writer = TensorBoard(tmp_path)
    writer.log("valid", 3, {"nats per token": 2.0})
    writer.add_samples(3, ["a <b>\nc"])
    writer.add_picture(3, tmp_path / "curves.png")
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"valid/nats_per_token", b"samples/1", b"curves"))


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    for given in ((True, None), (False, "project")):
        with pytest.raises(InputError, match="needs: pip install"):
            check_packages(*given)
    check_packages(False, None)
    experiment = tiny.experiment(tiny.write_text(tmp_path / "text.txt"), train=Training(steps=1))
    with pytest.raises(InputError, match="--wandb needs"):
        Session(experiment, tmp_path / "run", source="", overrides=[], wandb="project")
    assert not (tmp_path / "run").exists()
