"""No character of a text is lost in silence: it is refused by its place, or counted as unknown."""

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mdlm.data.tokenizers import BPE, Bytes, Pretrained, Text8, WordPiece
from mdlm.data.tokens import tokenizer as encoding
from mdlm.errors import InputError

SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[MASK]"]
LETTERS = [*SPECIAL, *"abc "]


def built(tmp_path, model, *, normalizer=None, pre_tokenizer=None, special=SPECIAL, added=()):
    backend = tokenizers.Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token) for token in added])
    backend.save(str(tmp_path / "tokenizer.json"))
    return Pretrained(name=str(tmp_path)).build([])


def bpe(tokens=LETTERS, **settings):
    vocab = {token: i for i, token in enumerate(tokens)}
    return models.BPE(vocab=vocab, merges=settings.pop("merges", []), **settings)


@pytest.mark.parametrize(
    "case",
    [
        dict(model=bpe()),
        dict(model=bpe(unk_token="<unk>")),  # named, but not in the vocabulary
        dict(model=bpe([*LETTERS, "ab"], merges=[("a", "b")])),
        dict(model=bpe([*LETTERS, *(f"<0x{i:02X}>" for i in range(100))], byte_fallback=True)),
        dict(model=bpe(unk_token="[EOS]")),  # unknown characters would end the document
        dict(model=bpe([*LETTERS, "##a", "##b", "##c"], continuing_subword_prefix="##"),
                 pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        dict(model=bpe([*LETTERS, "a</w>", "b</w>", "c</w>"], end_of_word_suffix="</w>"),
             pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
        dict(model=models.Unigram([(token, -1.0) for token in LETTERS], None)),
    ],
)  # fmt: skip
def test_a_character_without_a_token_is_refused_by_its_place(case, tmp_path, monkeypatch):
    tokenizer = built(tmp_path, **case)
    tokenizer.encode(["ab cab", "abc"])
    monkeypatch.setattr(encoding, "PIECE", 10)
    text = "ab " * 20 + "☃a"
    place = r"'☃' \(U\+2603\) has no.*\(character 60 of the text 'ab ab"
    with pytest.raises(InputError, match=place):
        tokenizer.encode(["abc", text, "☃"])
    with pytest.raises(InputError, match=r"Bytes\(\) and BPE\(\)"):
        tokenizer.encode(["☃"])


def test_bytes_without_a_token_are_lost_characters_too(tmp_path):
    known = [*SPECIAL, "a", "b", "Ġ"]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = built(tmp_path, bpe(known), pre_tokenizer=level)
    assert len(tokenizer.encode(["ab a"])[0]) == 4
    with pytest.raises(InputError, match=r"'é' \(U\+00E9\).*\(character 2 of"):
        tokenizer.encode(["abé"])


@pytest.mark.parametrize("model", [models.WordPiece, models.WordLevel])
def test_a_word_without_a_token_is_refused(model, tmp_path):
    vocab = {token: i for i, token in enumerate([*SPECIAL, "the", "cat"])}
    split = pre_tokenizers.WhitespaceSplit()
    tokenizer = built(tmp_path, model(vocab=vocab), pre_tokenizer=split)
    with pytest.raises(InputError, match=r"word 'dog' .*\(character 8 of the text 'the cat dog'"):
        tokenizer.encode(["the cat dog"])


def test_what_normalizers_and_added_tokens_cover_is_not_lost(tmp_path):
    tokenizer = built(tmp_path, bpe(), normalizer=normalizers.Lowercase(), added=["☃"])
    assert len(tokenizer.encode(["AB☃c"])[0]) == 4
    with pytest.raises(InputError, match="'é'"):
        tokenizer.encode(["☃é"])
    whole = built(tmp_path, bpe([*LETTERS, "é!"], ignore_merges=True))  # a word without its letters
    assert len(whole.encode(["é!"])[0]) == 1
    with pytest.raises(InputError, match="'é'"):
        whole.encode(["é"])


def test_unknown_tokens_have_an_id(tmp_path):
    assert BPE(vocab_size=270).build(["ab"]).unk_id is None
    assert Bytes().build([]).unk_id is None
    assert Text8().build([]).unk_id == 7
    words = WordPiece(vocab_size=30).build(["the cat"])
    assert words.unk_id == 4
    assert np.array_equal(words.encode(["☃"])[0], [4])
    pieces = [("<unk>", 0.0), *((token, -1.0) for token in LETTERS)]
    assert built(tmp_path, models.Unigram(pieces, 0)).unk_id == 0
