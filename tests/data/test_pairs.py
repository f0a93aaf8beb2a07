"""Prompts and responses: from files and data sets to rows."""

import gzip
import json
import re

import datasets
import numpy as np
import pytest

from mdlm.data import Bytes
from mdlm.data.pairs import (
    Encoded,
    Fields,
    Pair,
    as_pairs,
    divided,
    encode_pairs,
    read_pairs,
    rows_of,
)
from mdlm.data.tokens.chat import Chat
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.vocab import Vocab

QUESTION = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so."}


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().build([])


def lines(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_files(tmp_path):
    a = {"prompt": "one", "response": " two", "id": 10**400}
    b = {"messages": [QUESTION, ANSWER], "more": None}
    name = lines(tmp_path / "pairs.jsonl", a, "", b)
    expected = [
        Pair(prompt="one", response=" two", where=f"{name}:1"),
        Pair(prompt=[QUESTION], response="so.", where=f"{name}:3"),
    ]
    assert read_pairs(name, Fields()) == expected
    packed = tmp_path / "pairs.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    assert [pair.response for pair in read_pairs(str(packed), Fields())] == [" two", "so."]
    name = lines(tmp_path / "named.jsonl", {"question": "q", "answer": "a"})
    [pair] = read_pairs(name, Fields(prompt="question", response="answer"))
    assert (pair.prompt, pair.response) == ("q", "a")


def test_columns_of_a_data_set(tmp_path):
    rows = datasets.Dataset.from_dict({"q": ["a", "b"], "r": ["c", "d"], "n": [1, 2]})
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "set")
    found = read_pairs(str(tmp_path / "set"), Fields(prompt="q", response="r"))
    assert [(pair.prompt, pair.response) for pair in found] == [("a", "c"), ("b", "d")]
    with pytest.raises(InputError, match="test row 0: no field 'prompt'.*only n, q, r"):
        read_pairs(str(tmp_path / "set"), Fields())
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(str(tmp_path / "none"), Fields())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no field 'prompt' \\(nor 'messages'\\), only text; name others with"),
        ({"prompt": "x"}, "no field 'response'"),
        ({}, "no field 'prompt'.*only none"),
        ({"prompt": "x", "response": 3}, "'response' is int, not text"),
        ({"prompt": None, "response": "x"}, "'prompt' is NoneType, not text"),
        ({"messages": [QUESTION]}, "messages must end with"),
        ({"messages": [QUESTION, QUESTION]}, "messages must end with"),
        ({"messages": [ANSWER]}, "messages must end with"),
        ({"messages": "hello"}, "messages must end with"),
        ({"messages": [QUESTION, {"role": "assistant"}]}, "the last message is NoneType"),
        ('{"prompt": "x", "response": "\\ud800"}', "'response' has half a surrogate pair"),
        ("[]", "list, must be a JSON object"),
        ("{", "not JSON"),
        ('{"prompt": ' + 100_000 * "[", "a field is nested too deeply.*than .prompt., .response."),
    ],
)
def test_damaged_lines(tmp_path, row, message):
    name = lines(tmp_path / "pairs.jsonl", {"prompt": "a", "response": "b"}, row)
    with pytest.raises(InputError, match=f"pairs.jsonl:2: {message}") as caught:
        read_pairs(name, Fields())
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="file not found"):
        read_pairs(str(tmp_path / "none.jsonl"), Fields())
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match="a.csv: unknown ending: must be .jsonl"):
        read_pairs(str(tmp_path / "a.csv"), Fields())
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="empty.jsonl: no prompt and response in it"):
        read_pairs(str(tmp_path / "empty.jsonl"), Fields())
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(InputError, match="latin.jsonl:1 is not UTF-8 text: byte 0xe9 at offset 12"):
        read_pairs(str(tmp_path / "latin.jsonl"), Fields())


def test_tokens(tokenizer):
    messages = [QUESTION]
    pairs = as_pairs([("ab", " c"), ("", "x"), (messages, "yes")])
    tokenizer.chat = Chat(template="{{ messages|length }}?.", ends=(46,))
    found = encode_pairs(pairs, tokenizer, start=7)
    ids = lambda text: tuple(tokenizer.encode([text])[0].tolist())
    assert found == [
        Encoded(prompt=(7, *ids("ab")), response=ids(" c"), where="pair 1"),
        Encoded(prompt=(7,), response=ids("x"), where="pair 2"),
        Encoded(prompt=ids("1?."), response=ids("yes"), where="pair 3"),
    ]
    # Whole answers have the template's end; a prompt has none of it.
    tokenizer.chat = Chat(
        template="{% for m in messages %}{{ m.content }}.\n{% endfor %}", ends=(46,)
    )
    *plain, said = encode_pairs(pairs, tokenizer, start=7, is_whole=True)
    assert plain == found[:2]
    due = dict(prompt=ids("why?.\n"), response=ids("yes."), where="pair 3", is_ended=True)
    assert said == Encoded(**due)
    tokenizer.chat = Chat()
    with pytest.raises(InputError, match="pair 3: this run has no chat template"):
        encode_pairs(pairs, tokenizer, start=None)
    [plain] = encode_pairs(pairs[:1], tokenizer, start=None)
    assert plain.prompt == ids("ab")
    with pytest.raises(InputError, match="pair 1: the response is empty"):
        encode_pairs(as_pairs([("a", "")]), tokenizer, start=None)
    with pytest.raises(InputError, match="pair 2: the response is int, not text"):
        as_pairs([("a", "b"), ("a", 3)])


class Words(Tokenizer):
    """A tokenizer with a token for each word, joined with the space before it."""

    def __init__(self):
        pass

    def encode(self, texts):
        return [
            np.array([sum(map(ord, w)) for w in re.findall(r" ?\S+| ", t)], np.int32) for t in texts
        ]

    def encode_after(self, text):
        return self.encode([text])[0]


def test_where_a_text_is_divided():
    tokens = lambda text: Words().encode([text])[0].tolist()
    assert divided(Words(), "one two", " three") == (tokens("one two"), tokens(" three"))
    # The space belongs to the next word.
    assert divided(Words(), "one two ", "three") == (tokens("one two"), tokens(" three"))
    # The tokens of the whole do not begin with those of the prompt.
    assert divided(Words(), "one tw", "o") == (tokens("one tw"), tokens("o"))


def test_rows():
    pairs = [
        Encoded(prompt=(5, 6), response=(7,), where=""),
        Encoded(prompt=(), response=(8, 9), where=""),
    ]
    rows = rows_of(pairs, 4, Vocab(size=10, mask_id=0))
    np.testing.assert_array_equal(rows.tokens, [[5, 6, 7, 1], [8, 9, 1, 1]])
    np.testing.assert_array_equal(rows.loss_mask, [[0, 0, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(rows.is_valid, [[1, 1, 1, 0], [1, 1, 0, 0]])
