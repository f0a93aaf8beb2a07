"""`mdlm tokenizer train` as its users run it."""

import re

import pytest
import tiny
from test_cli import mdlm, refused

from mdlm.data import BPE, Pretrained, TextFiles, WordPiece

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    work = tmp_path_factory.mktemp("tokenizers")
    tiny.write_text(work / "text.txt")
    tiny.write_text(work / "more.txt", seed=1)
    (work / "tiny.py").write_text(tiny.FILE.format(text=str(work / "text.txt")))
    return work


def test_byte_pairs_of_files(folder):
    out = mdlm(
        *("tokenizer", "train", "text.txt", "more.txt", "--vocab-size", 300, "--out", "t/bpe"),
        cwd=folder,
    )
    assert out.returncode == 0, out.stderr
    first, packed, cut, after = out.stdout.splitlines()
    assert first == "t/bpe: 300 tokens"
    rate = float(re.fullmatch(r"  (.*) bytes per token on 0.0 MB of held-out text", packed)[1])
    made = Pretrained(name=str(folder / "t/bpe")).build([])
    source = TextFiles(
        train=(str(folder / "text.txt"), str(folder / "more.txt")), test_fraction=0.0
    )
    text = "".join(source.documents("valid"))
    assert rate == pytest.approx(len(text) / len(made.encode([text])[0]), abs=0.005)
    assert len(cut.split("|")) > 10 and cut.replace("|", "").strip() in text
    assert after == "next: tokenizer=Pretrained(name='t/bpe') in an experiment"
    v = made.vocab
    assert [v.bos_id, v.eos_id, v.pad_id, v.mask_id] == [0, 1, 2, 3]
    again = BPE(vocab_size=300).build(source.documents("train"))
    assert again.fingerprint == made.fingerprint  # of the training part alone
    said = refused("tokenizer", "train", "text.txt", "--out", "t/bpe", cwd=folder)
    assert "--out t/bpe: holds a tokenizer already" in said


@pytest.mark.slow
def test_word_pieces_of_an_experiment_which_then_trains(folder):
    out = mdlm(
        *("tokenizer", "train", "tiny.py", "--kind", "wordpiece", "--vocab-size", 90),
        *("--data.source.train", "more.txt", "--cased", "--out", "wp"),
        cwd=folder,
    )
    assert out.returncode == 0, out.stderr
    assert "wp: 90 tokens\n" in out.stdout and "0.000% of its tokens are [UNK]" in out.stdout
    config = WordPiece(vocab_size=90, lowercase=False)
    texts = TextFiles(train=str(folder / "more.txt")).documents("train")
    made = Pretrained(name=str(folder / "wp")).build([])
    assert made.fingerprint == config.build(texts).fingerprint
    changed = (folder / "tiny.py").read_text().replace("Bytes", "Pretrained")
    (folder / "next.py").write_text(changed.replace("Pretrained()", 'Pretrained(name="wp")'))
    run = mdlm("train", "next.py", "--train.steps", 2, "--out", "run", cwd=folder)
    assert run.returncode == 0, run.stderr[-2000:]


def test_fewer_tokens_than_asked_for_are_told(folder):
    out = mdlm("tokenizer", "train", "text.txt", "--out", "few", cwd=folder)
    assert re.match(r"few: \d+ tokens \(32,768 asked for: the text has no more\)", out.stdout)


def test_help_teaches():
    words = mdlm("tokenizer", "--help").stdout
    assert "mdlm tokenizer train books/*.txt.gz" in words and "Pretrained(name=" in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.txt"], "file not found: none.txt"),
        (["text.txt", "--vocab-size", "12"], "--vocab-size 12: vocab_size=12: must be at least"),
        (["text.txt", "--cased"], "--cased: allowed with --kind wordpiece only"),
        (["text.txt", "--seed", "1"], "--seed: allowed with an experiment only"),
        (["text.txt", "tiny.py"], "2 names: give text files, or one experiment"),
        (["text.txt", "--out", "text.txt"], "--out text.txt: is a file"),
    ],
)
def test_refusals(folder, words, message):
    out = [] if "--out" in words else ["--out", "no"]
    assert message in refused("tokenizer", "train", *words, *out, cwd=folder)
    assert not (folder / "no").exists()
