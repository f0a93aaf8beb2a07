"""The comparison of methods: real runs of a small experiment, scored, listed and drawn; the noise
of gradients, against what is known of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from benchmarks import family, oracle, samplers, variance
from mdlm.config.component_text import from_text
from mdlm.errors import InputError
from mdlm.experiment import load_file
from mdlm.models import BlockDiT
from mdlm.objectives import BlockNelbo
from mdlm.run import load
from mdlm.samplers import BlockByBlock, Sampler

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Two methods, `mdlm` with two seeds, all of them run by the benchmark's own command."""
    folder = tmp_path_factory.mktemp("family")
    text = tiny.write_text(folder / "text.txt")
    (folder / "experiments").mkdir()
    file = tiny.FILE.format(text="elsewhere.txt").replace('name="tiny"', 'name="mdlm"')
    (folder / "experiments/mdlm.py").write_text(file.replace("dropout=0.1", "dropout=0.0"))
    ground = family.Ground(folder / "experiments", folder / "runs", "byte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "TEXT", ground)
        assert family.main(["run", "--text", str(text), "--seeds", "0", "1"]) == 0
    return ground


@pytest.mark.slow
def test_report(ground, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(family, "TEXT", ground)
    monkeypatch.setattr(family, "BOOKS", replace(ground, out=tmp_path / "none"))
    monkeypatch.setattr(family, "PICTURE", tmp_path / "family.png")
    monkeypatch.setattr(family, "RECORD", tmp_path / "family.json")
    assert family.main(["report"]) == 0
    values = [
        json.loads((ground.out / f"mdlm-{seed}/eval.json").read_text())[0]["value"]
        for seed in (0, 1)
    ]
    assert values[0] != values[1]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| mdlm"))
    error = abs(values[0] - values[1]) / 2
    assert f"| 2 | {sum(values) / 2:.4f} +- {error:.4f} (seeds) |" in row
    assert row.endswith("| NELBO, continuous time |")
    assert (tmp_path / "family.png").stat().st_size > 5000
    # What was reported once is known without the folders.
    monkeypatch.setattr(family, "TEXT", replace(ground, out=tmp_path / ground.out.name))
    assert family.main(["report"]) == 0
    assert row in capsys.readouterr().out


@pytest.mark.slow
def test_samplers_of_a_run(ground, tmp_path, capsys):
    """Greedy texts of one kind are all alike; others have an entropy of their own."""
    words = [str(ground.out / "mdlm-0"), "--num", "3", "--json", str(tmp_path / "table.json")]
    texts = ["Ancestral(steps=2, temperature=0.0)", "FirstHitting(per_call=8)"]
    greedy, drawn = samplers.run([*words, "--samplers", *texts])
    assert (greedy["NFE"], drawn["NFE"]) == (2, 4)  # rows of 32 bytes
    assert 0 <= greedy["entropy"] < drawn["entropy"] < np.log(256)
    stored = json.loads((tmp_path / "table.json").read_text())
    assert [row["sampler"] for row in stored] == texts and stored == [greedy, drawn]
    assert f"| `{texts[1]}` |" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no Nothing"):
        samplers.run([*words, "--samplers", "Nothing()"])


def test_labels_of_curves_are_apart_and_in_order():
    heights = np.array([0.1, 0.11, 0.5, 0.1])
    placed = family.apart(heights, 0.1)
    assert np.diff(np.sort(placed)).min() > 0.099
    assert placed[2] == pytest.approx(0.5) and placed[1] > max(placed[0], placed[3])
    assert placed[[0, 1, 3]].mean() == pytest.approx(heights[[0, 1, 3]].mean(), abs=0.01)


def test_texts_of_the_tables_are_samplers():
    for text in samplers.DISTRIBUTIONS:
        from_text(text, Sampler)
    for pattern in oracle.CURVES.values():
        from_text(pattern.format(n=2, k=3), Sampler)


@pytest.mark.slow
def test_what_is_done_is_not_repeated(ground, capsys):
    family.train(ground, "mdlm", 0, [], 0)
    assert "exists already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, reason",
    [
        (["run", "mlm", "--text", "x"], "mlm: no such method; choose from ar, bd3lm"),
        (["run", "mdlm"], "needs --text FILE or --books FOLDER"),
        (["run", "sedd", "--books", "x"], "sedd: no such method; choose from ar, bd3lm, md4, mdlm"),
    ],
)
def test_bad_words_are_refused(words, reason, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        family.main(words)
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_stratified_times_make_less_noise(ground):
    run = load(ground.out / "mdlm-0")
    chosen = {(b, t): e for b, t, e in variance.cases(run)}
    assert len(chosen) == 18  # six bounds, three ways of drawing times
    found = {
        times: variance.measure(run, chosen["mdlm", times], rows=16, pairs=12)
        for times in ("independent", "stratified")
    }
    assert found["stratified"]["noise"] < 0.8 * found["independent"]["noise"]
    assert all(r["signal"] > -3 * r["signal_error"] for r in found.values())


@pytest.mark.slow
def test_what_draws_nothing_has_no_noise(ground):
    run = load(ground.out / "mdlm-0")
    exact = replace(
        run.experiment,
        network=BlockDiT(width=32, depth=2, heads=2, cond_dim=16, block_size=1),
        objective=BlockNelbo(block_size=1, low=1.0),
        sampler=BlockByBlock(block_size=1),
    )
    found = variance.measure(run, exact, rows=16, pairs=2)
    assert found["noise"] == 0 and found["signal"] > 0


def test_experiments_share_all_but_the_method(monkeypatch):
    """Within each ground: data, batches, steps, optimizer and sizes of the network."""
    monkeypatch.chdir(ROOT)
    for ground in (family.TEXT, family.BOOKS):
        shared = set()
        for method in ground.methods:
            e = load_file(ground.experiments / f"{method}.py")
            assert e.name == method
            n = e.network
            shared.add(repr((e.data, e.train, e.optimizer, n.width, n.depth, n.heads)))
        assert len(shared) == 1
