"""What is typed first: help, the list of experiments, a file of one's own, completion."""

import os
import shutil
import subprocess
import sys

import pytest

from mdlm.cli.main import COMMANDS, main
from mdlm.cli.new import renamed
from mdlm.experiment import load_file
from mdlm.experiment.shipped import names, summary

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "numpy", "datasets", "tokenizers", "matplotlib"}


def run(*words, cwd, **more) -> str:
    out = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, **more)
    assert out.returncode == 0, out.stderr
    return out.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import mdlm",
        "from mdlm.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from mdlm.cli.main import main\nmain(['experiments'])",
    ],
)
def test_what_is_heavy_is_not_imported(code, tmp_path):
    """`import mdlm`, `mdlm --help` and the list of experiments stay quick."""
    code += "\nimport sys; print('imported:', *{name.partition('.')[0] for name in sys.modules})"
    imported = run(sys.executable, "-c", code, cwd=tmp_path).rpartition("imported:")[2].split()
    assert "mdlm" in imported and not HEAVY & set(imported)
    # What else is imported comes with Python.
    others = set(imported) - sys.stdlib_module_names - {"__main__", "__mp_main__", "mdlm"}
    assert all(name.startswith(("_", "lazy_loader")) for name in others), others


def test_experiments_are_listed(capsys):
    assert main(["experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(line.endswith(f"  {summary(line.split()[0])}") for line in lines)


def test_new_writes_a_file_to_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my_run", "--like", "family/gidd"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: mdlm train my_run.py"
    mine, theirs = load_file("my_run.py"), load_file("family/gidd")
    assert mine.name == "my_run" and theirs.name == "gidd"
    assert mine.network == theirs.network and mine.objective == theirs.objective
    text = (tmp_path / "my_run.py").read_text()
    assert "mdlm train my_run.py" in text and "experiments/family/gidd.py" not in text
    assert main(["new", "my_run.py"]) == 2
    assert "my_run.py: exists already" in capsys.readouterr().err
    assert (tmp_path / "my_run.py").read_text() == text
    # One's own file is a beginning too, and so is the default.
    assert main(["new", "second", "--like", "my_run.py"]) == 0
    assert load_file("second.py").name == "second"
    assert main(["new", "third"]) == 0
    assert load_file("third.py").network == load_file("quickstart").network


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["my_run", "--like", "quikstart"], "nearest name is quickstart"),
        (["no/such/folder/run"], "name a file in an existing folder"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["new", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_only_the_name_of_the_experiment_is_replaced():
    source = 'x = f(name="a")\nexperiment = Experiment(data=g(name="a"), name="a", y=1)\n'
    assert renamed(source, "b") == source.replace('name="a", y', 'name="b", y')
    same = "experiment = Experiment(name=NAME)\n"
    assert renamed(same, "b") == same


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_ARGCOMPLETE" in script and "mdlm" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def completed(line: str, cwd) -> set[str]:
    """What bash offers after a line, by the script and by `mdlm` as it is here."""
    mdlm = f'mdlm() {{ "{sys.executable}" -m mdlm "$@"; }}'
    script = (
        f"{mdlm}; source <(mdlm completion bash); COMP_LINE={line!r}; COMP_POINT={len(line)}; "
        '_python_argcomplete mdlm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(run("bash", "-c", script, cwd=cwd, env={**os.environ}).split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_commands_options_experiments_and_files(tmp_path):
    (tmp_path / "query.py").touch()
    (tmp_path / "query.txt").touch()
    assert completed("mdlm ", tmp_path) >= set(COMMANDS)
    assert completed("mdlm tr", tmp_path) == {"train"}
    assert completed("mdlm train q", tmp_path) == {"quickstart", "query.py"}
    assert completed("mdlm plan family/g", tmp_path) == {"family/genmd4", "family/gidd"}
    assert completed("mdlm new x --like owt", tmp_path) == {"owt_ar", "owt_sedd", "owt_small"}
    assert "--tensorboard" in completed("mdlm train quickstart --te", tmp_path)
