"""Components of another package, used by name, and runs that are made of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import mdlm
from mdlm.cli.main import main
from mdlm.config import components
from mdlm.config.component_text import from_text, to_text
from mdlm.errors import InputError
from mdlm.samplers import Sampler
from mdlm.schedules import Schedule

OUTSIDE = Path(__file__).parents[1] / "outside"
ROOT = OUTSIDE.parents[1]


@pytest.fixture
def installed(monkeypatch):
    """The package as if it was installed, here and now."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    components._entry_points.cache_clear()
    yield
    components._entry_points.cache_clear()


def command(*words, cwd, path=OUTSIDE) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(str(one) for one in (path, ROOT) if one is not None)
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-m", "mdlm", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def test_entry_points_are_found_by_their_names(installed):
    made = from_text("Theirs(power=2)", Schedule)
    assert type(made).__module__ == "theirs" and to_text(made) == "Theirs(power=2.0)"
    few = from_text("TheirSampler(top_p=0.5)", Sampler)
    assert type(few).__name__ == "FewSteps" and few.steps == 4
    assert to_text(few) == "TheirSampler(top_p=0.5)"
    assert type(made) in components.fitting((Schedule,))
    with pytest.raises(InputError, match=r"expected .* or TheirSampler\(...\)"):
        from_text("Theirs()", Sampler)
    with pytest.raises(InputError, match="did you mean Theirs?"):
        from_text("Thers()", Schedule)


def test_an_entry_point_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    shutil.copytree(OUTSIDE / "theirs-1.0.dist-info", info)
    (info / "entry_points.txt").write_text(
        "[mdlm.components]\nGone = gone.module:Gone\nNot = json:dumps\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    components._entry_points.cache_clear()
    try:
        with pytest.raises(InputError, match="Gone: the entry point gone.module:Gone .* cannot be"):
            from_text("Gone()", Schedule)
        with pytest.raises(InputError, match="Not: the entry point json:dumps .* is no frozen"):
            from_text("Not()", Schedule)
    finally:
        components._entry_points.cache_clear()


@pytest.mark.e2e
def test_a_run_of_their_components(tmp_path, capfd, monkeypatch):
    tiny.write_text(tmp_path / "text.txt", words=1200)
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text=str(tmp_path / "text.txt")))
    words = ["train", "tiny.py", "--out", "run", "--process", "Masked(schedule=Theirs())"]
    words += ["--network", "DiT(width=8, depth=1, heads=1, cond_dim=8)", "--train.steps", "2"]
    words += ["--data.packing", "Wrap(length=16)", "--evaluation", "Perplexity(passes=1)"]
    words += ["--train.eval_every", "0", "--sampler", "Ancestral(steps=2)"]
    out = command(*words, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["experiment"]["process"] == "Masked(schedule=Theirs())"
    out = command("sample", "run", "--sampler", "TheirSampler()", "--json", cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    assert 1 <= json.loads(out.stdout)["nfe"] <= 5

    # Where the package is not installed, nothing finds them.
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "run"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "there is no Theirs" in line and "--trust-experiment" in line
    assert main(["sample", "run", "--sampler", "TheirSampler()", "--trust-experiment"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "there is no Theirs" in line  # the override of the command line


OLD = Path(__file__).parents[1] / "old_runs"
WRITES = """
from pathlib import Path
Path({file!r}).touch()
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose copy of the experiment writes a file when it is executed."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # where its text is
    copy = tmp_path / "before_folders" / "experiment.py"
    copy.write_text(copy.read_text() + WRITES.format(file=str(tmp_path / "executed")))
    return tmp_path / "before_folders"


def renew(run: Path, **changes: str) -> None:
    """Rewrites the description of a run as this version writes it, with fields replaced."""
    from mdlm.config.records import record

    config = json.loads((run / "config.json").read_text())
    config["experiment"] = {**record(mdlm.load(run).experiment), **changes}
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("is_old", [True, False])
def test_a_run_is_opened_without_executing_its_file(run, is_old, capfd):
    if not is_old:
        renew(run)
    eval = ["eval", str(run), "--passes", "1", "--json"]
    assert main(eval) == 0
    nats = json.loads(capfd.readouterr().out)[0]["value"]
    assert main(["sample", str(run), "--num", "1"]) == 0
    assert not (run.parent / "executed").exists()
    capfd.readouterr()
    assert main([*eval, "--trust-experiment"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["value"] == nats
    assert (run.parent / "executed").exists()


def test_what_is_found_nowhere_is_named_in_one_line(run):
    here = mdlm.load(run).experiment
    for process, name in (
        ("Masked(schedule=Gone(power=2.0))", "Gone"),
        ("Masked(schedule=mdlm_experiment.Mine())", "mdlm_experiment.Mine"),
    ):
        config = json.loads((run / "config.json").read_text())
        if "class" in config["experiment"]:
            renew(run)
            config = json.loads((run / "config.json").read_text())
        config["experiment"]["process"] = process
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=f"there is no {name}") as caught:
            mdlm.load(run)
        said = str(caught.value)
        assert "--trust-experiment" in said and "experiment.py" in said and "\n" not in said
        assert not (run.parent / "executed").exists()
        assert mdlm.load(run, trust=True).experiment == here
        (run.parent / "executed").unlink()


def test_another_objective_is_reported(run, capfd):
    eval = ["eval", str(run), "--passes", "1", "--json"]
    assert main([*eval, "--objective", "DiscreteNelbo(steps=4)"]) == 0
    found = json.loads(capfd.readouterr().out)[0]
    assert "4 steps" in found["protocol"] or "discrete" in found["protocol"]
    for text, message in (
        ("Autoregressive()", "needs a network that attends to"),
        ("Nelbo(t_min=2)", "--objective Nelbo(t_min=2): t_min"),
        ("Ancestral()", "--objective Ancestral(): expected Autoregressive(...)"),
    ):
        assert main([*eval, "--objective", text]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line
