"""Rows of prompts and responses: what is in them, what is scored, and which pairs are left out."""

import json

import numpy as np
import pytest

from mdlm.config.component_text import from_text
from mdlm.data import Bytes, Packing, PairData, Pairs, Responses
from mdlm.data.mixture import other_data
from mdlm.data.pairs import Encoded
from mdlm.data.tokens.chat import PLAIN
from mdlm.errors import InputError
from mdlm.types import Vocab

VOCAB = Vocab(size=20, mask_id=0, bos_id=1, eos_id=2)
PAIRS = [
    Encoded(prompt=(1, 5, 6), response=(7,), where="a"),
    Encoded(prompt=(1,), response=(8, 9), where="b"),
    Encoded(prompt=(1, 5), response=(2,), where="ended", is_ended=True),
    Encoded(prompt=(1,) * 9, response=(4, 4), where="too long"),
]


def of(**settings):
    return Responses(length=10, **settings).of_pairs(PAIRS, VOCAB)


def test_an_end_once():
    rows = of()
    assert len(rows) == 3 and rows.is_padded and rows.inserted == {2: 2}
    found = rows.all()
    assert found.tokens[0, :5].tolist() == [1, 5, 6, 7, 2]
    assert np.flatnonzero(found.loss_mask[0]).tolist() == [3, 4]
    assert np.flatnonzero(found.is_valid[0]).tolist() == [0, 1, 2, 3, 4]
    assert found.tokens[2, :3].tolist() == [1, 5, 2]  # the template's own end is enough
    assert found.loss_mask[2].sum() == 1 and found.segment_ids is None
    assert rows.loss_tokens() == found.loss_mask.sum() == 6
    assert (rows.placed, rows.dropped) == (10, 11)
    assert (found.tokens[~found.is_valid] != VOCAB.mask_id).all()


def test_no_end():
    rows = of(eos="never")
    assert rows.inserted == {} and rows.loss_tokens() == rows.all().loss_mask.sum() == 4
    assert rows.take(np.array([1])).tokens[0, :3].tolist() == [1, 8, 9]


def test_a_row_filled_with_ends():
    rows, vocab = of(eos="filled"), VOCAB
    found = rows.all()
    assert not rows.is_padded and found.is_valid.all()
    assert (found.tokens[0, 4:] == vocab.eos_id).all() and found.loss_mask[0, 3:].all()
    assert not found.loss_mask[0, :3].any()
    assert rows.loss_tokens() == found.loss_mask.sum() == 7 + 9 + 8
    assert rows.inserted == {2: rows.loss_tokens() - 4}


def test_several_in_a_row():
    rows = of(packed=True)
    assert len(rows) == 2
    one = rows.take(np.array([0]))
    assert one.tokens[0, :9].tolist() == [1, 5, 6, 7, 2, 1, 8, 9, 2]
    assert one.segment_ids[0].tolist() == [0] * 5 + [1] * 5
    assert np.flatnonzero(one.loss_mask[0]).tolist() == [3, 4, 6, 7, 8]
    assert one.is_valid[0].tolist() == [True] * 9 + [False]
    assert rows.loss_tokens() == rows.all().loss_mask.sum() == 6


def test_what_cannot_be(tmp_path):
    with pytest.raises(InputError, match="eos.*must be one of 'once', 'filled', 'never'|maybe"):
        from_text("Responses(length=8, eos='maybe')", Packing)
    with pytest.raises(ValueError, match="packed=True puts several"):
        Responses(length=8, eos="filled", packed=True)
    with pytest.raises(InputError, match="none of 4 pairs fits a row of length=3: .* has 5 tokens"):
        Responses(length=3).of_pairs(PAIRS[:1] * 4, VOCAB)
    with pytest.raises(InputError, match="has no EOS: name one, or use eos='never'"):
        Responses(length=9).of_pairs(PAIRS, Vocab(size=20, mask_id=0))


def written(path, n=40, chat=False):
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            said = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "abc"}]
            pair = {"messages": said} if chat else {"prompt": f"q{i}:", "response": "abc"}
            file.write(json.dumps(pair) + "\n")
    return str(path)


def data(source, **settings):
    return PairData(source=source, tokenizer=Bytes(), packing=Responses(length=40, **settings))


def test_a_part_of_the_pairs_is_held_out(tmp_path):
    name = written(tmp_path / "pairs.jsonl")
    loaded = data(Pairs(train=name, valid_fraction=0.1, test_fraction=0.05)).load()
    assert loaded.splits == ("train", "valid", "test")
    assert [len(getattr(loaded, s).rows) for s in loaded.splits] == [34, 4, 2]
    texts = [loaded.data.source.documents(split)[0] for split in loaded.splits]
    assert texts == ["q0:abc", "q34:abc", "q38:abc"]
    assert loaded.protocol("valid") == "responses given prompts, in rows of 40, EOS after each"
    # Of the text only responses are scored, and their ends spell nothing.
    assert loaded.valid.tokens == 4 * 4
    other = written(tmp_path / "valid.jsonl", n=3)
    named = data(Pairs(train=name, valid=other)).load()
    assert named.splits == ("train", "valid")
    assert (len(named.train.rows), len(named.valid.rows)) == (40, 3)
    [tested] = other_data(named.data, (other,), "test").load().splits[1:]
    assert tested == "test"
    with pytest.raises(InputError, match="named for the valid split and also for training"):
        data(Pairs(train=name, valid=name)).load().train  # noqa: B018
    short = written(tmp_path / "one.jsonl", n=1)
    with pytest.raises(InputError, match="too few pairs for a train split"):
        data(Pairs(train=short)).load().train  # noqa: B018


def test_conversations_without_a_template_get_a_plain_one(tmp_path):
    name = written(tmp_path / "chats.jsonl", chat=True)
    loaded = data(Pairs(train=name)).load()
    rows = loaded.train.rows.take(np.array([0]))
    said = loaded.tokenizer.decode(rows.tokens[0][rows.is_valid[0]], keep_special=True)
    assert said == "User: q0\nAssistant: abc[EOS]"
    assert loaded.tokenizer.chat.template == PLAIN
    assert loaded.tokenizer.chat.ends == (loaded.vocab.eos_id,)
    loaded.tokenizer.save(tmp_path / "data")
    again = data(Pairs(train=name)).load(tmp_path / "data")
    assert again.tokenizer.chat == loaded.tokenizer.chat
    [prompt] = loaded.data.prompts("valid", loaded.tokenizer, 1)
    assert loaded.tokenizer.decode(prompt) == "User: q38\nAssistant: "


def test_pairs_need_rows_of_pairs(tmp_path):
    from mdlm.data import TextData, TextFiles

    (tmp_path / "a.txt").write_text("some text\n" * 40, encoding="utf-8")
    text = TextFiles(train=str(tmp_path / "a.txt"))
    wrong = TextData(source=text, tokenizer=Bytes(), packing=Responses(length=8))
    with pytest.raises(InputError, match="is for prompts and responses"):
        wrong.load().train  # noqa: B018
