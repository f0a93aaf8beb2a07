"""`mdlm plan`: what it prints, what it refuses, and a step compiled for TPUs that are not here."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from store_maker import change_manifest, write_store
from test_cli import mdlm

from mdlm.cli import main as cli
from mdlm.cli.plan import vocabulary
from mdlm.data import BPE, Bytes, Characters
from mdlm.errors import InputError

pytestmark = pytest.mark.e2e


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An experiment whose text does not exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text="nowhere.txt"))
    return "tiny.py"


def refused(capsys, *words) -> str:
    assert cli.main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return err


def test_estimate(file, capsys):
    words = ["plan", file, "--topology", "gpu:8xH100", "--price", "2", "--mesh.fsdp", "2"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "tiny on gpu:8xH100: 8 x NVIDIA H100 80GB HBM3, mesh data=4 fsdp=2" in out
    assert "vocabulary of 260 (the tokenizer Bytes)" in out and "  estimated: fits" in out
    assert "8 x 989 TFLOP/s" in out and "at $2 a chip-hour" in out
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "estimated" and found["traffic"] is None
    assert found["mesh"] == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}


def test_a_device_that_is_not_listed(file, capsys):
    words = (file, "--topology", "gpu:1xOther", "--device-memory", "24", "--device-tflops", "165")
    assert cli.main(["plan", *words]) == 0
    out = capsys.readouterr().out
    assert "tiny on gpu:1xOther: 1 x Other" in out and "of 24.00" in out
    assert "1 x 165 TFLOP/s" in out
    assert "--device-memory GIB and --device-tflops" in refused(capsys, *words[:-2])
    assert "--device-tflops 0: must be above 0" in refused(capsys, *words[:-1], "0")


def test_refusals(file, capsys, monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "libtpu" else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    assert "unknown; must be a TPU slice like v4:4x4x4, v5e:4x4" in refused(
        capsys, file, "--topology", "v7:2x2"
    )
    said = refused(capsys, file, "--topology", "v5e:2x2")
    assert "needs the TPU compiler: pip install 'jax[tpu]'" in said
    said = refused(capsys, file, "--topology", "v5e:2x2", "--mesh.fsdp", "3")
    assert "mesh data=-1 fsdp=3 does not fit 4 devices" in said
    said = refused(capsys, file, "--topology", "v5e:2x2", "--mesh.tensor", "4", "--mesh.data", "1")
    assert "network.heads=2: must be a multiple of mesh.sequence x mesh.tensor = 1 x 4" in said
    said = refused(capsys, file, "--topology", "v5e:4x8")
    assert "a batch of 16 rows does not divide over 32 devices" in said
    assert "--mfu 40.0" in refused(capsys, file, "--topology", "v5e:2x2", "--mfu", "40")
    assert "--price -1" in refused(capsys, file, "--topology", "v5e:2x2", "--price", "-1")


def test_help():
    text = mdlm("plan", "--help").stdout
    assert "--topology v5e:4x4" in text and "pip install 'jax[tpu]'" in text


def test_where_the_vocabulary_is_known_from(tmp_path):
    """The store, the tokenizer, what it may learn at most, or `--vocab`; never the text."""

    def known(tokenizer, size=None, store=None):
        experiment = tiny.experiment(tmp_path / "nowhere.txt")
        data = replace(experiment.data, tokenizer=tokenizer, store=store)
        vocab, source = vocabulary(replace(experiment, data=data), size)
        return vocab.size, source

    assert known(Bytes()) == (260, "the tokenizer Bytes")
    assert known(Bytes(), 1000) == (1000, "--vocab")
    assert known(BPE(vocab_size=300)) == (300, "at most, by BPE(vocab_size=300)")
    with pytest.raises(InputError, match=r"tokenizer=Characters\(...\) learns .* --vocab N"):
        known(Characters())
    with pytest.raises(InputError, match="--vocab 3"):
        known(Bytes(), 3)
    store = str(tmp_path / "store")
    splits = {split: [[5, 6]] for split in ("train", "valid", "test")}
    write_store(store, splits, Bytes().build([]), eos=1, shard_tokens=10)
    assert known(Characters(), store=store) == (260, f"the store {store}")
    change_manifest(store, lambda values: values["splits"].pop("valid"))
    with pytest.raises(InputError, match=f"{store}: its manifest lacks the valid split"):
        known(Characters(), store=store)


@pytest.mark.slow
def test_compiles_for_a_slice(file, tmp_path):
    """A small network's step for four TPUs that are not here."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing is compiled for TPUs")
    # Large enough for its activations not to fit on the chip itself.
    words = ("plan", file, "--topology", "v5e:2x2", "--data.packing.length", 512)
    words += ("--network.heads", 8, "--network.width", 512, "--train.batch_size", 512)
    words += ("--mesh.fsdp", 4)
    out = mdlm(*words, "--json", cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    p = json.loads(out.stdout)
    assert p["method"] == "compiled" and p["fits"] and p["columns"] == 260
    state = sum(p["memory"][name] for name in ("parameters", "optimizer", "average"))
    assert 0 < p["memory"]["other"] < state
    assert p["traffic"]["all-gather"]["count"] > 0 and p["sending_seconds"] > 0
    estimate = json.loads(mdlm(*words, "--estimate", "--json", cwd=tmp_path).stdout)
    assert estimate["memory"]["parameters"] == p["memory"]["parameters"]
    ratio = p["memory"]["temporaries"] / estimate["memory"]["temporaries"]
    assert 0.6 < ratio < 1.6
    late = mdlm(*words, "--timeout", 0.01, cwd=tmp_path)
    assert late.returncode == 2 and "took longer than --timeout 0.01 s" in late.stderr
    odd = (*words[:2], "--topology", "v5e:3x3", "--mesh.fsdp", 9, "--train.batch_size", 9)
    out = mdlm(*odd, cwd=tmp_path)
    assert out.returncode == 2 and "there is no such slice" in out.stderr
    odd = ("--topology", "v5p:4x4x4", "--mesh.fsdp", 8, "--train.batch_size", 64)
    out = mdlm(*words[:2], *odd, cwd=tmp_path)
    assert out.returncode == 2 and "data=8 fsdp=8 cannot be laid" in out.stderr


@pytest.mark.slow
def test_a_step_that_is_too_large(file, tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing is compiled for TPUs")
    words = ("plan", file, "--topology", "v5e:2x2", "--network.width", 4096, "--json")
    out = mdlm(*words, "--train.batch_size", 2**16, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    p = json.loads(out.stdout)
    assert not p["fits"] and "Ran out of memory" in p["refused"]
    assert np.isfinite(p["memory"]["total"]) and p["memory"]["total"] > p["available"]
