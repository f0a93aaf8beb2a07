"""Cleaning of benchmark texts, against what the public detokenizers give."""

import json
import re
from dataclasses import dataclass

import datasets
import numpy as np
import pytest

from mdlm.data.cleaning import LM1B, PTB, Cleaning, Lambada, ScientificPapers, WikiText
from mdlm.data.sources import HuggingFace, TextFiles

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
