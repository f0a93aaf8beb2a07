"""Preferences: from files to rows of which two are one example."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mdlm.data import Bytes, Fields, PairData, Preferences, Responses
from mdlm.data.preferences import compared_in
from mdlm.data.rows.shuffle import Shuffled, Together
from mdlm.errors import InputError

LINES = [
    {"prompt": f"{i}?", "chosen": "yes" * (1 + i % 3), "rejected": "no", "score": 3.5}
    for i in range(20)
]
CHAT = [{"role": "user", "content": "Hi!"}]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def data_of(name, length=14, **changes):
    source = Preferences(train=name, valid_fraction=0.1)
    packing = Responses(length=length, bos=False)
    return PairData(source=replace(source, **changes), tokenizer=Bytes(), packing=packing)


def texts(data, rows):
    tokenizer = data.tokenizer.build([])
    keep = lambda row, mask: tokenizer.decode(row[mask].tolist())
    return [keep(row, mask) for row, mask in zip(rows.tokens, rows.loss_mask, strict=True)]


def test_both_responses_are_rows_one_after_the_other(tmp_path):
    data = data_of(written(tmp_path / "a.jsonl", LINES))
    split = data.encode("train", data.tokenizer.build([]))
    assert len(split.rows) == 36  # of 20 preferences two are held out
    order = split.rows.order(seed=3)
    for epoch in range(2):
        at = order.at(np.arange(36 * epoch, 36 * (epoch + 1)))
        assert sorted(at) == list(range(36)) and list(at) != list(range(36))
        assert (at[1::2] == at[::2] + 1).all() and (at[::2] % 2 == 0).all()
    rows = split.rows.take(order.at(np.arange(4)))
    said = texts(data, rows)
    assert all("yes" in one and "no" in other for one, other in (said[:2], said[2:]))
    prompts = rows.is_valid & ~rows.loss_mask
    assert (rows.tokens[0][prompts[0]] == rows.tokens[1][prompts[1]]).all()


def test_validation_has_the_chosen_responses(tmp_path):
    data = data_of(written(tmp_path / "a.jsonl", LINES))
    valid = data.encode("valid", data.tokenizer.build([]))
    assert len(valid.rows) == 2
    assert all("yes" in text and "no" not in text for text in texts(data, valid.rows.all()))


def test_a_preference_that_is_too_long_is_left_out_whole(tmp_path):
    lines = [*LINES[:4], {"prompt": "1?", "chosen": "y" * 40, "rejected": "no"}, *LINES[4:]]
    data = data_of(written(tmp_path / "a.jsonl", lines), valid=written(tmp_path / "b.jsonl", LINES))
    split = data.encode("train", data.tokenizer.build([]))
    said = texts(data, split.rows.all())
    assert len(said) == 40 and ["yes" in text for text in said] == [True, False] * 20
    assert split.rows.dropped == 46


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected', only chosen, prompt; name others"),
        ({"chosen": "b", "rejected": "c"}, "no field 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "'chosen' is int, not text"),
        ({"prompt": 1, "chosen": "a", "rejected": "b"}, "'prompt' is int, not text"),
        ({"prompt": "a", "chosen": "\ud800", "rejected": "b"}, "half a surrogate pair"),
        ({"chosen": [*CHAT, *CHAT], "rejected": CHAT}, "must differ in their last message alone"),
        ({"chosen": [*CHAT, *CHAT], "rejected": [*CHAT, *CHAT]}, "must end with a message of the"),
        ({"prompt": [{"role": "x"}], "chosen": "a", "rejected": "b"}, "'prompt': message 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, line, message):
    name = written(tmp_path / "a.jsonl", [LINES[0], line])
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        data_of(name).source.pairs("train")
    assert str(refused.value).startswith(f"{name}:2: ") and "\n" not in str(refused.value)


def test_an_empty_response_is_refused(tmp_path):
    lines = [*LINES, {"prompt": "a", "chosen": "b", "rejected": ""}]
    data = data_of(written(tmp_path / "a.jsonl", lines), valid_fraction=0.0)
    with pytest.raises(InputError, match="a.jsonl:21: the response is empty"):
        data.encode("train", data.tokenizer.build([]))


def test_conversations_and_fields_of_other_names():
    answers = [[*CHAT, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    pairs = compared_in({"chosen": answers[0], "rejected": answers[1]}, Fields(), "x")
    assert [(pair.prompt, pair.response) for pair in pairs] == [(CHAT, "yes"), (CHAT, "no")]
    fields = Fields(prompt="q", chosen="w", rejected="l")
    pairs = compared_in({"q": CHAT, "w": "yes", "l": "no"}, fields, "x")
    assert [(pair.prompt, pair.response) for pair in pairs] == [(CHAT, "yes"), (CHAT, "no")]


def test_responses_of_a_preference_share_no_row(tmp_path):
    data = data_of(written(tmp_path / "a.jsonl", LINES))
    data = replace(data, packing=Responses(length=12, packed=True))
    with pytest.raises(InputError, match="packing.packed=True: the responses of a preference"):
        data.encode("train", data.tokenizer.build([]))


def test_an_order_of_examples():
    order = Together(Shuffled(5, seed=1), 3)
    at = order.at(np.arange(15))
    assert sorted(at) == list(range(15)) and (at.reshape(5, 3) % 3 == [0, 1, 2]).all()
    np.testing.assert_array_equal(at[::3] // 3, Shuffled(5, seed=1).at(np.arange(5)))
