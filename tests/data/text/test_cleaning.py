"""Cleaning of benchmark texts, against the results of the public detokenizers."""

import json
import re
from dataclasses import dataclass

import datasets
import pytest

from mdlm.data.sources import TextFiles
from mdlm.data.text.cleaning import LM1B, PTB, Cleaning, Lambada, ScientificPapers, WikiText
from mdlm.data.text.hugging_face import HuggingFace

NAMES = {
    "wt": WikiText(),
    "ptb": PTB(),
    "lm1b": LM1B(),
    "lambada": Lambada(),
    "scientific_papers": ScientificPapers(),
}


@pytest.mark.golden
def test_the_published_rules(golden):
    cases = golden("data_prep.json")["detokenizers"]
    assert set(cases) == set(NAMES)
    for name, pairs in cases.items():
        for pair in pairs:
            assert NAMES[name](pair["in"]) == pair["out"], name


@pytest.mark.parametrize(
    ("clean", "text", "expected"),
    [
        (WikiText(), " = = Plot = = \n", " == Plot ==\n"),
        (WikiText(), "", ""),
        (WikiText(), " 3 @,@ 000 ( c . 1900 ) \n", " 3,000 (c. 1900)\n"),
        (WikiText(), "a { b } [ c\n d ]", "a {b} [c\nd]"),
        (PTB(), "N N N N N N", "N 1 1 1 1 N"),  # only between spaces, as published
        (PTB(), "the # N a $ N day is n't", "the #1 a $1 day isn't"),
        (LM1B(), 'a " b ( c ) " d [ e ] .', 'a "b (c)" d [e] .'),
        (LM1B(), "on https : / / a.b / c / d ?", "on https://a.b/c/d?"),
        (LM1B(), "He sold it . Why ! £ 5 .", "He sold it. Why! £5."),
        (LM1B(), "the ( ) and ( a ( b ) )", "the ( ) and ( a (b) )"),
        (Lambada(), " “a” \n", '\n"a"'),
        (ScientificPapers(), "x ( y ) / z", "x (y)/z"),
    ],
)
def test_cases_by_hand(clean, text, expected):
    assert clean(text) == expected


@dataclass(frozen=True)
class Upper(Cleaning):
    """Puts each whole document in brackets, to show that pieces are joined first."""

    def __call__(self, text: str) -> str:
        return f"<{text.upper()}>"


def pieces_of(source, split="train"):
    """The documents that pieces form, with reading resumed after each piece."""
    whole = list(source.pieces(split))
    for n, piece in enumerate(whole):
        rest = list(source.pieces(split, piece.position))
        assert [p.text for p in rest] == [p.text for p in whole[n + 1 :]]
    assert all(piece.ends for piece in whole)
    return [piece.text for piece in whole]


def test_sources_clean_whole_documents(tmp_path):
    long = "word " * 300_000  # comes in two pieces
    path = tmp_path / "a.txt"
    path.write_text(f"one|{long}|three")
    source = TextFiles(train=str(path), valid=str(path), separator="|", clean=Upper())
    expected = ["<ONE>", f"<{long.upper()}>", "<THREE>"]
    assert source.documents("train") == expected
    assert pieces_of(source) == expected
    assert len(list(TextFiles(train=str(path), valid=str(path), separator="|").pieces("train"))) > 3


def test_cleaning_keeps_counts_of_dropped_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one|\xff|two|\xff")
    source = TextFiles(
        train=str(path), valid=str(path), separator="|", undecodable="drop", clean=Upper()
    )
    found = list(source.pieces("train"))
    assert "".join(piece.text for piece in found) == "<ONE><TWO>"
    assert sum(piece.dropped.get("not UTF-8", 0) for piece in found) == 2


def test_data_set_is_cleaned_by_row(tmp_path):
    rows = ["", " = Title = \n", " a @-@ b \n", ""]
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "saved")
    source = HuggingFace(path=str(tmp_path / "saved"), clean=WikiText())
    assert source.documents("train") == ["", " = Title =\n", " a-b\n", ""]
    assert pieces_of(source) == source.documents("train")
    assert repr(source).count("WikiText()") == 1  # a store distinguishes cleaned text


@pytest.mark.corpora
def test_wikitext_is_cleaned(corpora):
    text = (corpora / "wikitext2-valid.txt").read_text()[:300_000]
    lines = [WikiText()(line) for line in text.splitlines(keepends=True)]
    marks = re.compile(r" @[-,.]@ | , | \. ")
    assert len(marks.findall(text)) > 3000 and len(marks.findall("".join(lines))) < 10
    headings = [line for line in lines if re.match(r" =+ .* =+\n$", line)]
    assert len(headings) > 100 and not any("= =" in line for line in headings)
    passages = (corpora / "lambada-test.jsonl").read_text().splitlines()[:100]
    for text in (Lambada()(json.loads(line)["text"]) for line in passages):
        assert text[0] == "\n" and text[1:] == text.strip() and not set(text) & set("“”")
