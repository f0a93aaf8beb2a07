"""Recipes, on generated data sets with the splits, fields and special cases of the real ones."""

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from mdlm.data import recipes
from mdlm.data.packing import Pad, Wrap
from mdlm.data.text import text8
from mdlm.data.text.cleaning import LM1B, PTB, Lambada, ScientificPapers
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.data.tokenizers import BPE, Bytes, Dna, Pretrained, Text8
from mdlm.errors import InputError
from mdlm.evals import zero_shot

HEADING, LINE = " = Robert Boulter = \n", " He starred in 2 @,@ 000 plays ( in 2005 ) . \n"
WIKI = ["", HEADING, "", LINE, "", " = = Career = = \n", "", LINE * 2]
NEWS = datasets.ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])


def saved(folder: Path, **splits: dict) -> str:
    """A data set as `save_to_disk` writes it."""
    parts = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(folder)
    return str(folder)


def parquet(folder: Path, **splits: dict) -> str:
    """A data set as the hub stores it: `SPLIT/0000.parquet`."""
    for name, columns in splits.items():
        (folder / name).mkdir(parents=True)
        datasets.Dataset.from_dict(columns).to_parquet(folder / name / "0000.parquet")
    return str(folder)


def rows(data, split: str, length: int = 16):
    """The rows of a split as bytes, in place of a tokenizer that would have to be downloaded."""
    packing = replace(data.packing, length=length)
    loaded = replace(data, tokenizer=Bytes(), packing=packing, store=None).load()
    part = getattr(loaded, split)
    return part, loaded.tokenizer


def running_text(data, split: str) -> str:
    """The concatenated text of the rows; special tokens by name."""
    part, tokenizer = rows(data, split)
    found = part.rows.all()
    inside = found.tokens[:, 1:-1] if data.packing.row_specials else found.tokens
    valid = found.is_valid[:, 1:-1] if data.packing.row_specials else found.is_valid
    text = tokenizer.decode(inside[valid], keep_special=True)
    return text.removesuffix("[EOS]") if data.packing.row_specials else text


def test_text8(tmp_path, monkeypatch):
    monkeypatch.setattr(text8, "SIZES", {"train": 90, "valid": 25, "test": 21})
    text = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz "), 136))
    (tmp_path / "text8").write_text(text)
    data = recipes.text8(str(tmp_path / "text8"))
    assert data.packing == Wrap(length=256, row_specials=False, eos=False)
    assert data.tokenizer == Text8()
    loaded = replace(data, packing=replace(data.packing, length=8)).load()
    for split, size in (("train", 90), ("valid", 25), ("test", 21)):
        part = getattr(loaded, split)
        found = part.rows.all()
        assert part.tokens == size == part.characters  # nothing inserted, nothing dropped
        ids = found.tokens[found.is_valid]
        assert (
            ids.min() >= 8
            and loaded.tokenizer.decode(ids) == loaded.data.source.documents(split)[0]
        )
    assert loaded.vocab.size == 8 + 27


def test_one_billion_words_padded_and_packed(tmp_path):
    sentences = ['The man said : " yes , " he \'s here .', "", "What now ?"]
    path = saved(tmp_path / "lm1b", train={"text": sentences}, test={"text": sentences[::-1]})
    clean = ['The man said: "yes," he\'s here.', "", "What now?"]
    padded, packed = recipes.lm1b_padded(path), recipes.lm1b_packed(path)
    for data in (padded, packed):
        assert data.source.splits == ("train", "test") and data.source.clean == LM1B()
        assert data.source.documents("train") == clean
        assert data.tokenizer == Pretrained(name="bert-base-uncased")
    assert padded.packing == Pad(length=128, pad="as_published")
    assert packed.packing == Wrap(length=128, row_specials=True, eos=True, remainder="drop")
    part, tokenizer = rows(padded, "test", length=14)
    found = part.rows.all()
    assert [tokenizer.decode(row, keep_special=True) for row in found.tokens] == [
        "[BOS]What now?[EOS][PAD][PAD][PAD]",
        "[BOS]The man said[EOS]",
    ]
    assert found.loss_mask.sum(axis=1).tolist() == [11, 14] and found.is_valid.all()
    text = running_text(packed, "train")
    assert (clean[0] + "[EOS][EOS]What now?[EOS]").startswith(text) and len(text) > 28


def test_openwebtext_holds_out_its_last_documents(tmp_path):
    texts = [f"{i}" for i in range(100_003)]
    path = str(tmp_path / "owt")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)
    data = recipes.openwebtext(path, store="somewhere")
    assert data.store == "somewhere" and data.source.splits == ("train", "valid")
    assert data.source.documents("train") == ["0", "1", "2"]
    assert next(data.source.pieces("valid")).text == "3"
    assert [piece.text for piece in data.source.pieces("valid", 99_999)] == ["100002"]
    assert data.packing == Wrap(length=1024, remainder="drop")
    assert data.tokenizer == Pretrained(name="gpt2")


def test_fineweb_edu_streams_and_holds_out_its_first(tmp_path):
    real = recipes.fineweb_edu("sample-100BT").source
    assert real.streaming and real.config == "sample-100BT" and real.path.startswith("HuggingFaceF")
    n = 10_004
    columns = {"text": [f"page {i}" for i in range(n)], "id": ["<urn>"] * n, "score": [3.5] * n}
    path = parquet(tmp_path / "fineweb", train=columns)
    source = recipes.fineweb_edu(path=path).source
    assert source.splits == ("train", "valid")
    assert source.documents("train") == [f"page {i}" for i in range(10_000, n)]
    streamed = replace(source, streaming=True, held_out_documents=3)
    assert [piece.text for piece in streamed.pieces("valid")] == ["page 0", "page 1", "page 2"]
    train = streamed.pieces("train")
    first = next(train)
    assert first.text == "page 3"
    assert next(streamed.pieces("train", first.position)).text == next(train).text == "page 4"


def test_tinystories(tmp_path):
    stories = {"text": ["One day, a cat sat.", "", "The end."]}
    data = recipes.tinystories(parquet(tmp_path / "tiny", train=stories, validation=stories))
    assert data.source.splits == ("train", "valid") and data.tokenizer == BPE(vocab_size=8192)
    assert running_text(data, "valid") == "One day, a cat sat.[EOS][EOS]The end.[EOS]"


@pytest.mark.parametrize("recipe", [recipes.wikitext2, recipes.wikitext103])
def test_wikitext_is_concatenated(tmp_path, recipe):
    lines = {"text": WIKI}
    data = recipe(saved(tmp_path / "wiki", train=lines, validation=lines, test=lines))
    assert data.source.splits == ("train", "valid", "test")
    assert data.packing == Wrap(length=1024, eos=False) and data.tokenizer == recipes.GPT2
    clean = " He starred in 2,000 plays (in 2005).\n"
    assert running_text(data, "valid") == (
        f" = Robert Boulter =\n{clean} == Career ==\n{clean}{clean[1:]}"
    )
    part, _ = rows(data, "valid")
    assert part.documents == 8 and part.rows.dropped == 0


def test_penn_treebank(tmp_path):
    sentences = {"sentence": ["no it was n't <unk>", "mr. vinken is N years old"]}
    path = parquet(tmp_path / "ptb", train=sentences, validation=sentences, test=sentences)
    data = recipes.ptb(path)
    assert data.source.clean == PTB()
    assert running_text(data, "valid") == "no it wasn't ?mr. vinken is 1 years old"


def test_lambada_is_a_test_split(tmp_path):
    passages = {"text": ["“Yes,” he said, “the end", "He sat in the chair"]}
    data = recipes.lambada(saved(tmp_path / "lambada", test=passages))
    assert data.source.splits == ("test",) and data.source.clean == Lambada()
    assert running_text(data, "test") == '\n"Yes," he said, "the end\nHe sat in the chair'


def test_ag_news(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": NEWS})
    columns = {"text": ["Oil ( Reuters ) - up \\$ 5", 'AP - " Yes " ; no'], "label": [2, 0]}
    one = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "news")
    data = recipes.ag_news(str(tmp_path / "news"))
    assert data.source.splits == ("train", "test")
    assert data.source.documents("test") == ["Oil (Reuters) - up \\$5", 'AP - "Yes"; no']


def test_scientific_papers(tmp_path):
    def papers(words):
        article = f"{words} ( see @xmath0 ) .\n it 's so"
        return {"article": [article, ""], "abstract": ["a", "b"], "section_names": ["i", "m"]}

    for which in ("arxiv", "pubmed"):
        splits = {name: papers(f"{which} {name}") for name in ("train", "validation", "test")}
        parquet(tmp_path / "papers" / which, **splits)
    for which, recipe in (("arxiv", recipes.arxiv), ("pubmed", recipes.pubmed)):
        source = recipe().source
        assert source.data_dir == which and source.clean == ScientificPapers()
        for found in (
            replace(source, path=str(tmp_path / "papers"), revision=None),
            recipe(str(tmp_path / "papers" / which)).source,
        ):
            assert found.splits == ("train", "valid", "test")
            assert found.documents("valid") == [f"{which} validation (see @xmath0) .\nit's so", ""]


def test_genome(tmp_path):
    bases = "".join(np.random.default_rng(1).choice(list("ACGTacgtN"), 200))
    (tmp_path / "g.fa").write_text(f">chr1\n{bases}\n>chr2\n{bases[:50]}\n")
    (tmp_path / "i.bed").write_text("chr1\t96\t128\ttrain\nchr1\t8\t20\tvalid\nchr2\t0\t9\ttest\n")
    files, intervals = str(tmp_path / "g.fa"), str(tmp_path / "i.bed")
    real = recipes.genome(files, intervals=intervals).source
    assert real.interval_length == 2**20 and not real.reverse_complement
    data = recipes.genome(files, intervals=intervals, interval_length=32, reverse_complement=True)
    assert data.tokenizer == Dna() and data.packing.length == 1024
    found = replace(data, packing=replace(data.packing, length=16)).load()
    forth = bases[96:128].upper()
    train = [found.tokenizer.decode(row) for row in found.train.rows.all().tokens]
    assert train[:2] == [forth[:16], forth[16:]]  # rows never cross intervals of whole rows
    assert len(train) == 4 and found.train.tokens == 64
    back = forth[::-1].translate(str.maketrans("ACGT", "TGCA"))
    assert "".join(train[2:]) == back
    assert found.valid.tokens == 32 and found.test.documents == 1
    whole = recipes.genome(files, intervals=None)
    assert whole.packing.eos and whole.source.splits == ("train", "valid", "test")


def test_zero_shot_takes_the_tokens_and_rows_of_the_run(tmp_path):
    run = recipes.tinystories("nowhere", length=48, store="a store")
    path = saved(tmp_path / "lambada", test={"text": ["He sat"]})
    data, split = zero_shot.zero_shot("lambada", run.tokenizer, run.packing, (path,))
    assert split == "test" and data.tokenizer == run.tokenizer and data.store is None
    assert data.packing == Wrap(length=48, eos=False)
    assert data.source.documents("test") == ["\nHe sat"]
    plain = recipes.text8("nowhere")
    assert zero_shot.zero_shot("ptb", plain.tokenizer, plain.packing)[0].packing == Wrap(
        length=256, eos=False, row_specials=False
    )
    with pytest.raises(InputError, match="--on wikitext: allowed are ptb, wikitext2, wikitext103"):
        zero_shot.zero_shot("wikitext", run.tokenizer, run.packing)
    splits = {name: text.split for name, text in zero_shot.TEXTS.items()}
    assert splits == {
        **dict.fromkeys(("ptb", "wikitext2", "wikitext103", "pubmed", "arxiv"), "valid"),
        **dict.fromkeys(("lm1b", "lambada", "ag_news"), "test"),
    }
    for name in splits:
        found, _ = zero_shot.zero_shot(name, run.tokenizer, run.packing)
        assert isinstance(found.source, HuggingFace) and found.source.clean is not None
