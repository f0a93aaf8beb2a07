"""Text is only text: it becomes no special token, and always the same tokens."""

import json
import logging

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from mdlm.data.tokenizers import Pretrained
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError

WORDS = ["the of it and is to old new in a" * 3, "it is old, and the new is in it."] * 40
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTES = pre_tokenizers.ByteLevel.alphabet()


def saved(tmp_path, backend, change=lambda state: None):
    state = json.loads(backend.to_str())
    change(state)
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    return Pretrained(name=str(tmp_path))


def unigram(texts=WORDS):
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    settings = {"vocab_size": 60, "special_tokens": SPECIAL, "unk_token": "<unk>"}
    backend.train_from_iterator(texts, trainers.UnigramTrainer(show_progress=False, **settings))
    return backend


def byte_level(texts=WORDS, special=("[PAD]", "[BOS]", "[EOS]", "[MASK]"), use_regex=True, **model):
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    settings = {"vocab_size": 400, "special_tokens": list(special), "initial_alphabet": BYTES}
    backend.train_from_iterator(texts, trainers.BpeTrainer(show_progress=False, **settings))
    return backend


def word_level(words=("it", "is", "<", "/", "s", ">")):
    vocab = {word: i for i, word in enumerate([*SPECIAL, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return backend


def not_special(state):
    for token in state["added_tokens"]:
        token["special"] = False


def spelled_by_merges(state):
    """The special tokens can also be put together from letters."""
    model = state["model"]
    size = max(model["vocab"].values()) + 1
    for i, (a, b) in enumerate([("[", "E"), ("[E", "O"), ("[EO", "S"), ("[EOS", "]")]):
        model["vocab"].setdefault(a + b, size + i)
        model["merges"].append([a, b])


CASES = {
    "unigram": (unigram, lambda state: None, "it {} is"),
    "word level": (word_level, lambda state: None, "it {} is"),
    "not marked special": (byte_level, not_special, "it {} is"),
    "merges": (byte_level, spelled_by_merges, "it {} is"),
    "whole words": (lambda: byte_level(use_regex=False, ignore_merges=True), not_special, "{}"),
}


@pytest.mark.parametrize("name", CASES)
def test_text_that_spells_a_special_token_is_text(name, tmp_path):
    make, change, text = CASES[name]
    tokenizer = saved(tmp_path, make(), change).build([])
    tokenizer.save(tmp_path / "kept")
    names = ["[PAD]", "[BOS]", "[EOS]", "[MASK]", "</s>", "<s>", "<mask>", "<unk>", "<pad>"]
    special = {i for i in vars(tokenizer.vocab).values()} - {tokenizer.vocab.size, None}
    plain = tokenizer.encode(["it is"])[0].tolist()
    for one in (tokenizer, Tokenizer.load(tmp_path / "kept")):
        for token in names:
            ids = one.encode([text.format(token)])[0].tolist()
            assert ids and not special & set(ids), token
            if one.unk_id is None:
                assert one.decode(ids) == text.format(token)
        assert one.encode(["it is"])[0].tolist() == plain  # the other tokens keep their ids
    assert plain == make().encode("it is", add_special_tokens=False).ids


def test_other_added_tokens_are_found_in_text(tmp_path):
    backend = byte_level()
    backend.add_tokens(["<tab>"])
    tokenizer = saved(tmp_path, backend, not_special).build([])
    there = tokenizer.id_of("<tab>")
    assert there in tokenizer.encode(["it<tab>[EOS]"])[0]
    assert tokenizer.decode([tokenizer.vocab.eos_id, there]) == "<tab>"


def test_a_learnt_piece_has_no_role(tmp_path):
    texts = ["<s>old</s> new"] * 900 + WORDS
    backend = byte_level(texts, special=["<|endoftext|>"], use_regex=False)
    assert backend.token_to_id("</s>") is not None
    tokenizer = saved(tmp_path, backend).build([])
    assert tokenizer.vocab.eos_id == tokenizer.vocab.bos_id == tokenizer.id_of("<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode(["it </s> is"])[0]) == "it </s> is"
    chosen = Pretrained(name=str(tmp_path), eos="</s>").build([])  # on the user's own word
    assert chosen.vocab.eos_id == chosen.id_of("</s>")
    assert chosen.vocab.eos_id not in chosen.encode(["it </s> is"])[0]
    with pytest.raises(InputError, match=r"eos='old' is a piece of text.*<\|endoftext\|>"):
        Pretrained(name=str(tmp_path), eos="old").build([])


def noisy(state):
    state["model"]["dropout"] = 0.5
    backend = byte_level()
    backend.enable_truncation(5)
    backend.enable_padding(length=500)
    state |= {kind: json.loads(backend.to_str())[kind] for kind in ("truncation", "padding")}


def test_the_same_text_gives_the_same_tokens(tmp_path, caplog):
    backend = byte_level()
    expected = backend.encode(WORDS[0]).ids
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    with caplog.at_level(logging.WARNING):
        tokenizer = saved(tmp_path, backend, noisy).build([])
    [line] = caplog.messages
    assert "dropout of 0.5" in line and "truncation" in line and "padding" in line
    assert "around each text" in line and str(tmp_path) in line
    tokenizer.save(tmp_path / "kept")
    for one in (tokenizer, Tokenizer.load(tmp_path / "kept")):
        for _ in range(20):
            np.testing.assert_array_equal(one.encode([WORDS[0]])[0], expected)


def test_an_older_file_with_dropout_keeps_its_fingerprint(tmp_path):
    config = saved(tmp_path, byte_level(), noisy)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    one, two = (Tokenizer(backend, config.build([]).vocab) for _ in range(2))
    assert one.fingerprint == two.fingerprint and '"dropout":0.5' in one.files()["tokenizer.json"]
    assert len({tuple(one.encode([WORDS[0]])[0].tolist()) for _ in range(20)}) == 1
