"""Fine-tuning on prompts and responses, from the command line to answers."""

import json

import pytest
import tiny

import mdlm
from mdlm.cli.main import main
from mdlm.errors import InputError
from mdlm.experiment import Training, load_file

OWN = ("network", "process", "objective", "sampler", "parameterization", "time_condition", "seed")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    text = tiny.write_text(folder / "text.txt")
    out = folder / "run"
    mdlm.train(tiny.experiment(text, train=Training(steps=2, batch_size=8)), out)
    return out


def chats(path, n=40):
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            said = [{"role": "user", "content": str(i % 7)}]
            said.append({"role": "assistant", "content": "ok"})
            file.write(json.dumps({"messages": said}) + "\n")
    return str(path)


@pytest.mark.slow
def test_a_run_goes_on_with_chats(base, tmp_path, capsys):
    out, file = tmp_path / "sft", chats(tmp_path / "chats.jsonl")
    words = ["train", "sft", "--init-from", str(base), "--data.source.train", file]
    words += ["--out", str(out), "--train.steps", "3", "--train.batch_size", "8"]
    words += ["--train.eval_every", "0", "--train.eval_rows", "8"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "responses given prompts, in rows of 32, filled with EOS" in " ".join(said.split())
    run, origin = mdlm.load(out), mdlm.load(base)
    for name in OWN:
        assert getattr(run.experiment, name) == getattr(origin.experiment, name)
    # 19 bytes of "User: 3\nAssistant: ", then "ok" and EOS to the row's end, which is scored.
    assert run.dataset.valid.tokens == 2 * 13
    [metric, *_] = run.perplexity()
    assert metric.n == 2 * 13
    # The template is part of the run, and so its answers end.
    answer = run.chat([{"role": "user", "content": "3"}], length=6).texts[0]
    assert len(answer.tokens) <= 6
    assert "User: " in (out / "samples.txt").read_text(encoding="utf-8")
    # The same command finds a finished run, and needs the other one no more.
    assert main([*words[:2], *words[4:]]) == 0
    fork = ["train", "sft", "--fork", f"{out}@3", "--out", str(tmp_path / "fork")]
    assert main([*fork, "--train.steps", "4"]) == 0
    assert mdlm.load(tmp_path / "fork").experiment.data == run.experiment.data
    # Another file is another run.
    other = chats(tmp_path / "other.jsonl", n=50)
    capsys.readouterr()
    assert main([*words, "--data.source.train", other]) == 2
    assert "data" in capsys.readouterr().err
    # Other files of pairs are evaluated as such.
    assert main(["eval", str(out), "--data", other, "--json"]) == 0
    [told, *_] = json.loads(capsys.readouterr().out)
    assert told["n"] == 50 * 13


def test_a_file_whose_experiment_follows_from_a_run(base, tmp_path, capsys):
    assert main(["train", "sft", "--out", str(tmp_path / "none")]) == 2
    assert "--init-from RUN" in capsys.readouterr().err and not (tmp_path / "none").exists()
    file = tmp_path / "wrong.py"
    file.write_text("def experiment(base):\n    return base.nothing\n", encoding="utf-8")
    assert main(["train", str(file), "--init-from", str(base), "--out", str(tmp_path / "x")]) == 2
    assert f"{file}, line 2: AttributeError" in capsys.readouterr().err
    file.write_text("experiment = lambda base: 3\n", encoding="utf-8")
    with pytest.raises(InputError, match="defines no `experiment"):
        load_file(file, base=mdlm.load(base).folder.experiment)
