"""Every byte of a checkpoint and of a run folder is checked before it is used."""

import json
import pwd
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from etils import epath

import mdlm
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.runs import digests
from mdlm.runs.checkpoints import STAMPED, Checkpoints
from mdlm.runs.weights import NAME as WEIGHTS
from mdlm.train.session import Session


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two checkpoints, and its experiment."""
    folder = tmp_path_factory.mktemp("digests")
    train = Training(steps=2, batch_size=8, ema_decay=0.9, eval_rows=8, checkpoint_every=1)
    experiment = tiny.experiment(tiny.write_text(folder / "text.txt"), train=train)
    experiment = replace(experiment, network=replace(experiment.network, width=16, depth=1))
    list(Session(experiment, folder / "run", source="# a file\n").train())
    return experiment, folder / "run"


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "run"))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def restored(folder: Path):
    shapes = {"step": jax.ShapeDtypeStruct((), np.int32)}
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.restore_part(shapes)["step"]


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_by_name(run):
    checkpoints = run / "checkpoints"
    assert restored(checkpoints) == 2
    names = files(checkpoints / "2")
    assert len(names) > 8
    for name in names:
        path = checkpoints / "2" / name
        whole = path.read_bytes()
        for position, bit in ((0, 7), (len(whole) // 2, 0), (len(whole) - 1, 3)):
            flip(path, position, bit)
            if name in STAMPED:  # times, which nothing reads
                assert restored(checkpoints) == 2
            else:
                with pytest.raises(InputError) as caught:
                    restored(checkpoints)
                said = str(caught.value)
                assert "\n" not in said and "step 2 is damaged" in said
                assert "to use the one of step 1, move" in said
                assert name in said or name == "metrics/metrics"
            path.write_bytes(whole)
    assert restored(checkpoints) == 2


@pytest.mark.parametrize("change", ["cut", "longer", "missing"])
def test_so_is_a_file_of_another_length(run, change):
    path = max((run / "checkpoints" / "2").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(data[:-1] if change == "cut" else data + b"\0")
    with pytest.raises(InputError, match=path.name):
        restored(run / "checkpoints")


def test_the_way_out_is_a_checkpoint_that_is_sound(run):
    for step in ("1", "2"):
        flip(run / "checkpoints" / step / "data" / "metadata", 3, 0)
    with pytest.raises(InputError, match="no older checkpoint is left that is sound"):
        restored(run / "checkpoints")


def test_bytes_that_pass_for_others_load_only_unverified(made, run):
    data = run / "checkpoints" / "2" / "data" / "metadata"
    text = data.read_text()
    data.write_text(text.replace('"position": 16', '"position": 24'))
    assert text != data.read_text()
    longer = replace(made[0], train=replace(made[0].train, steps=3))
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="data/metadata has other bytes.*--no-verify"):
        list(Session(longer, run, source="# a file\n").train())
    assert (run / "metrics.jsonl").read_text() == before
    list(Session(longer, run, source="# a file\n", verify=False).train())


def test_a_checkpoint_without_digests_opens(run):
    (run / "checkpoints" / "2" / digests.NAME).unlink()
    assert restored(run / "checkpoints") == 2


def test_a_flipped_bit_in_any_file_a_run_is_opened_with_is_refused_by_name(run):
    mdlm.load(run).save_weights()
    shutil.rmtree(run / "checkpoints")
    known = json.loads((run / digests.NAME).read_text())["files"]
    assert {"config.json", "env.json", "experiment.py", "data/tokenizer.json"} < set(known)
    assert {"data/special_tokens.json", "data/texts.json", WEIGHTS} < set(known)
    mdlm.load(run)
    for name in [*known, digests.NAME]:
        whole = (run / name).read_bytes()
        for position, bit in ((0, 6), (len(whole) // 2, 0), (len(whole) - 1, 2)):
            flip(run / name, position, bit)
            with pytest.raises(InputError) as caught:
                mdlm.load(run)
            assert name in str(caught.value) and "--no-verify" in str(caught.value)
            (run / name).write_bytes(whole)
    mdlm.load(run)


def test_a_fork_has_digests_of_its_own(made, run, tmp_path):
    longer = replace(made[0], train=replace(made[0].train, steps=3))
    list(Session(longer, tmp_path / "fork", fork=f"{run}@2").train())
    assert digests.damage(tmp_path / "fork" / "checkpoints" / "2") is None
    assert (tmp_path / "fork" / "checkpoints" / "2" / digests.NAME).is_file()
    flip(run / "checkpoints" / "2" / "data" / "metadata", 3, 0)
    with pytest.raises(InputError, match="data/metadata"):
        Session(longer, tmp_path / "other", fork=f"{run}@2")


def test_files_written_anew_have_their_digest_and_a_crash_leaves_none(tmp_path):
    with digests.sealed(tmp_path, "a", "b"):
        (tmp_path / "a").write_text("1")
        (tmp_path / "b").write_text("2")
    assert digests.damage(tmp_path) is None
    with pytest.raises(KeyboardInterrupt), digests.sealed(tmp_path, "a"):
        (tmp_path / "a").write_text("3")
        raise KeyboardInterrupt
    assert digests.damage(tmp_path) is None
    (tmp_path / "b").write_text("4")
    assert "b has other bytes" in (digests.damage(tmp_path) or "")


def test_a_file_of_several_parts_is_compared_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "PART", 10)
    folder = epath.Path(tmp_path)
    (tmp_path / "a").write_bytes(bytes(range(35)))
    (tmp_path / "empty").touch()
    digests.write(folder)
    assert len(json.loads((tmp_path / digests.NAME).read_text())["files"]["a"]) == 4
    for position in (0, 9, 10, 34):
        flip(tmp_path / "a", position, 0)
        assert digests.damage(folder) == f"a {digests.CHANGED}"
        flip(tmp_path / "a", position, 0)
    assert digests.damage(folder) is None
    (tmp_path / "empty").write_bytes(b"x")
    assert digests.damage(folder) == f"empty {digests.CHANGED}"


def test_files_of_a_user_without_a_name_are_read(tmp_path, monkeypatch):
    """A container may run under a number that is in no list of users."""
    state = {"w": np.arange(3.0)}

    def nobody(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with Checkpoints(tmp_path / "kept") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
    assert digests.damage(tmp_path / "kept" / "1") is None
    with Checkpoints(tmp_path / "kept", read_only=True) as checkpoints:
        found = checkpoints.restore_part({"w": jax.ShapeDtypeStruct((3,), np.float64)})
    assert np.asarray(found["w"]).tolist() == [0, 1, 2]
