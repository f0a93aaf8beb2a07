"""Tokenizers: round trips, special tokens, and text that is never encoded as a special token."""

import re

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from mdlm.config.component_text import to_text
from mdlm.data.tokenizers import BPE, Bytes, Characters, Pretrained, Text8, byte_characters
from mdlm.data.tokens import tokenizer as encoding
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.types import Vocab

TRICKY = [
    "héllo ☃ 🎉 \U0001f468\u200d\U0001f469 e\u0301",
    " [MASK] [BOS]<|endoftext|></s>[PAD] ",
    "\x00\x01\r\n\t  tabs \u2028 and  spaces   \n\n",
    "",
    " ",
    "".join(map(chr, range(0x300))),
]
TEXTS = ["the cat sat on the mat, the cat ate the rat. " * 20, "1 + 1 = 2\n" * 30, *TRICKY]


@pytest.mark.parametrize("config", [Bytes(), Characters(), BPE(vocab_size=320)])
def test_round_trip(config):
    tokenizer = config.build(TEXTS)
    ids = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(row) for row in ids] == TEXTS
    assert all(row.dtype == np.int32 for row in ids)
    vocab = tokenizer.vocab
    special = [vocab.bos_id, vocab.eos_id, vocab.pad_id, vocab.mask_id]
    assert not np.isin(np.concatenate(ids), special).any()
    assert max(row.max(initial=0) for row in ids) < vocab.size


@pytest.mark.parametrize("config", [Bytes(), Characters(), Text8(), BPE(vocab_size=320)])
def test_saved_in_a_folder(config, tmp_path):
    tokenizer = config.build(TEXTS)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.vocab == tokenizer.vocab
    assert again.fingerprint == tokenizer.fingerprint
    assert again.made_by == to_text(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens.json",
        "tokenizer.json",
    ]
    for a, b in zip(again.encode(TEXTS), tokenizer.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_or_damaged_tokenizer(tmp_path):
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        Tokenizer.load(tmp_path)
    Bytes().build([]).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


def test_special_tokens_are_left_out_of_the_text():
    tokenizer = Bytes().build([])
    v = tokenizer.vocab
    assert v == Vocab(size=260, mask_id=259, bos_id=256, eos_id=257, pad_id=258)
    ids = [v.bos_id, 104, 105, v.mask_id, v.eos_id, v.pad_id]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(np.array(ids), keep_special=True) == "[BOS]hi[MASK][EOS][PAD]"
    assert tokenizer.mask_token == "[MASK]" and tokenizer.id_of("[EOS]") == 257
    with pytest.raises(InputError, match="no token '<eos>'"):
        tokenizer.id_of("<eos>")


def test_bytes_are_their_own_ids():
    text = "aé\n🎉"
    [ids] = Bytes().build([]).encode([text])
    assert ids.tolist() == list(text.encode())
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_characters_encode_only_the_training_alphabet():
    tokenizer = Characters().build(["cab", "bad é"])
    assert tokenizer.vocab.size == 6 + 4
    assert tokenizer.encode(["abcd é"])[0].tolist() == [1, 2, 3, 4, 0, 5]
    with pytest.raises(InputError, match=r"character 'z' \(U\+007A\) .* alphabet of 6 .*Bytes\(\)"):
        tokenizer.encode(["cab", "cazb"])
    with pytest.raises(InputError, match=r"'B' \(U\+0042\).*lowercase=True"):
        tokenizer.encode(["Bad"])
    lower = Characters(lowercase=True).build(["CaB"])
    assert lower.decode(lower.encode(["BAc"])[0]) == "bac"
    with pytest.raises(InputError, match="no text"):
        Characters().build([""])


def test_bpe_counts_everything_and_is_deterministic():
    tokenizer = BPE(vocab_size=280).build(TEXTS)
    assert tokenizer.vocab == Vocab(size=280, mask_id=3, bos_id=0, eos_id=1, pad_id=2)
    assert len({BPE(vocab_size=280).build(TEXTS).fingerprint for _ in range(5)}) == 1
    assert BPE(vocab_size=281).build(TEXTS).fingerprint != tokenizer.fingerprint
    few = BPE(vocab_size=1024).build(["abab"])
    assert 260 <= few.vocab.size < 1024 and few.decode(few.encode(["ü"])[0]) == "ü"
    with pytest.raises(ValueError, match="vocab_size=259: must be at least 260"):
        BPE(vocab_size=259)
    with pytest.raises(InputError, match="no text"):
        BPE().build([])


@pytest.mark.parametrize("config", [Bytes(), Characters(), Text8(), BPE(vocab_size=400)])
def test_cutting_long_texts_changes_no_token(config, monkeypatch):
    texts = [*TEXTS, "word  two\n three " * 300, "x" * 3000 + " y"]
    tokenizer = config.build(texts)
    whole = tokenizer.encode(texts)
    calls = []
    monkeypatch.setattr(encoding, "PIECE", 50)
    monkeypatch.setattr(encoding, "BATCH", 200)
    cut = tokenizer.encode(texts, lambda *call: calls.append(call), "reading")
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    total = sum(map(len, texts))
    assert len(calls) > 5 and calls[-1] == ("reading", total, total)
    assert all(a[1] <= b[1] for a, b in zip(calls, calls[1:], strict=False))
    assert len(list(tokenizer._pieces(texts[0]))) > 5


def gpt2_like(tmp_path):
    """Byte-level BPE with one special token, EOS, as the last id."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return backend


def bert_like(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "[", "]", "mask"]
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    return backend


def test_pretrained_without_a_mask_gets_one(tmp_path):
    size = gpt2_like(tmp_path).get_vocab_size()
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = Pretrained(name=str(name)).build([])
        assert tokenizer.vocab == Vocab(
            size=size + 1, mask_id=size, bos_id=size - 1, eos_id=size - 1
        )
    ids = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(row) for row in ids] == TEXTS
    assert max(row.max(initial=0) for row in ids) < size - 1
    tokenizer.save(tmp_path / "kept")
    assert Tokenizer.load(tmp_path / "kept").fingerprint == tokenizer.fingerprint


def test_pretrained_with_a_mask_keeps_it(tmp_path):
    bert_like(tmp_path)
    tokenizer = Pretrained(name=str(tmp_path)).build([])
    assert tokenizer.vocab == Vocab(size=11, mask_id=4, bos_id=2, eos_id=3, pad_id=0)
    # Special tokens, truncation and padding of the file are off; text never gives the mask.
    assert tokenizer.encode(["The cats [MASK]"])[0].tolist() == [5, 6, 7, 8, 10, 9]
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "the cats"


def test_pretrained_names_can_be_chosen(tmp_path):
    bert_like(tmp_path)
    config = Pretrained(name=str(tmp_path), mask="[SEP]", bos="[PAD]", eos="[MASK]")
    tokenizer = config.build([])
    assert (tokenizer.vocab.mask_id, tokenizer.vocab.bos_id, tokenizer.vocab.eos_id) == (3, 0, 4)
    with pytest.raises(InputError, match="mask='mask' is a piece of text of .*: name a special"):
        Pretrained(name=str(tmp_path), mask="mask").build([])
    with pytest.raises(InputError, match=re.escape("eos='<end>' is not a token of")):
        Pretrained(name=str(tmp_path), eos="<end>").build([])


def test_missing_pretrained(tmp_path, monkeypatch):
    def offline(name, revision):
        raise FileNotFoundError(f"{name} at {revision}\nis nowhere")

    monkeypatch.setattr(tokenizers.Tokenizer, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"tokenizer gpt9 cannot be loaded: gpt9 at main$"):
        Pretrained(name="gpt9").build([])
    with pytest.raises(InputError, match="cannot be loaded"):
        Pretrained(name=str(tmp_path)).build([])


def test_a_folder_with_the_name_of_a_tokenizer_on_the_hub(tmp_path, monkeypatch):
    asked = []

    def hub(name, revision):
        asked.append(name)
        raise FileNotFoundError("no network")

    monkeypatch.setattr(tokenizers.Tokenizer, "from_pretrained", hub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(InputError, match=r"gpt2 cannot be loaded \(the folder gpt2 here has"):
        Pretrained(name="gpt2").build([])
    assert asked == ["gpt2"]
    bert_like(tmp_path / "gpt2")
    assert Pretrained(name="gpt2").build([]).vocab.size == 11
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "tokenizer.model").write_bytes(b"x")
    for name in ("llama", "llama/tokenizer.model"):
        with pytest.raises(InputError, match="tokenizer.model is SentencePiece's .* convert it"):
            Pretrained(name=name).build([])
    assert asked == ["gpt2"]


def test_text_that_is_not_utf8():
    for config in (Bytes(), Characters()):
        tokenizer = config.build(["caf é"])
        with pytest.raises(InputError, match="is not UTF-8: byte 0xc3 at offset 5$"):
            tokenizer.encode(["é", "é af\udcc3"])
    with pytest.raises(InputError, match=r"is not UTF-8: U\+D83C at offset 1$"):
        tokenizer.encode(["c\ud83c"])


@pytest.mark.parametrize("config", [Bytes(), Characters(), BPE(vocab_size=320)])
def test_pieces_join_to_the_text(config):
    tokenizer = config.build(TEXTS)
    text = TEXTS[0] + TEXTS[1]
    (ids,) = tokenizer.encode([text])
    pieces = tokenizer.pieces(ids.tolist())
    assert "".join(pieces[token] for token in ids.tolist()) == text
    assert set(pieces) == set(ids.tolist())
    mask_id = tokenizer.vocab.mask_id
    assert tokenizer.pieces([mask_id])[mask_id].strip() == "[MASK]"


def test_pieces_of_words_keep_the_space_that_a_first_token_loses(tmp_path):
    bert_like(tmp_path)
    tokenizer = Pretrained(name=str(tmp_path)).build([])
    assert tokenizer.pieces([7, 6, 5]) == {5: " the", 6: " cat", 7: "s"}
