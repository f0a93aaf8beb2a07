"""A text cut into pieces gives the tokens of the whole text, for every family of tokenizers."""

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mdlm.data.tokenizers import Pretrained
from mdlm.data.tokens import tokenizer as encoding

SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[MASK]", "[UNK]"]
TEXT = "The cat's hat sat on  the\n\nmat, e\u0301 12 345!  Ünder \x1c the\tta\u00a0ble \u0301x. "
TEXT *= 60
ALPHABET = sorted({*TEXT, *TEXT.lower(), "▁", "e", "é"})

LEVEL, META = pre_tokenizers.ByteLevel, pre_tokenizers.Metaspace
WORDS = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s"), "merged_with_previous"), LEVEL(
    add_prefix_space=False, use_regex=False)])  # fmt: skip
FAMILIES = {
    # name: (pre-tokenizer, normalizer, whether it may be cut)
    "gpt2": (LEVEL(add_prefix_space=False), None, True),
    "gpt2 with a space": (LEVEL(add_prefix_space=True), None, True),
    "nfc": (LEVEL(add_prefix_space=False), normalizers.NFC(), True),
    "nfkd": (LEVEL(), normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]), True),
    "bert": (pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), True),
    "spaces": (pre_tokenizers.WhitespaceSplit(), normalizers.Lowercase(), True),
    "words": (pre_tokenizers.Whitespace(), None, True),
    "level without its rule": (LEVEL(add_prefix_space=False, use_regex=False), None, False),
    "metaspace": (META(), None, False),
    "metaspace first": (META(prepend_scheme="first"), None, False),
    "metaspace, whole": (META(split=False), None, False),
    "sequence": (WORDS, None, False),
    "strip": (LEVEL(add_prefix_space=False), normalizers.Strip(), False),
    "prepend": (LEVEL(add_prefix_space=False), normalizers.Prepend("x"), False),
    "across": (LEVEL(), normalizers.Replace(Regex(r"\S\s+\S"), "-"), False),
    "nothing": (None, None, False),
    "llama": (None, normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), False),
}  # fmt: skip


def published(tmp_path, backend):
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.save(str(tmp_path / "tokenizer.json"))
    return Pretrained(name=str(tmp_path)).build([])


def check(tmp_path, backend, monkeypatch, cuts):
    tokenizer = published(tmp_path, backend)
    whole = np.array(backend.encode(TEXT, add_special_tokens=False).ids)
    for size in (1, 7, 50, 333):
        monkeypatch.setattr(encoding, "PIECE", size)
        np.testing.assert_array_equal(tokenizer.encode([TEXT])[0], whole)
    assert (tokenizer.cut_before is not None) == cuts


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
@pytest.mark.parametrize("name", FAMILIES)
def test_trained(name, kind, tmp_path, monkeypatch):
    pre_tokenizer, normalizer, cuts = FAMILIES[name]
    backend = tokenizers.Tokenizer(
        models.Unigram() if kind == "Unigram" else getattr(models, kind)(unk_token="[UNK]")
    )
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    unk = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    trainer = getattr(trainers, f"{kind.replace('BPE', 'Bpe')}Trainer")(
        vocab_size=250,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=[] if kind == "Unigram" else ALPHABET,
        **unk,
    )
    backend.train_from_iterator([TEXT[i : i + 90] for i in range(0, len(TEXT), 90)], trainer)
    check(tmp_path, backend, monkeypatch, cuts)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "settings, cuts",
    [
        ({}, True),
        ({"unk_token": "[UNK]"}, True),
        ({"unk_token": "[UNK]", "fuse_unk": True}, False),
        ({"ignore_merges": True}, False),
        ({"continuing_subword_prefix": "##"}, False),
        ({"end_of_word_suffix": "</w>"}, False),
    ],
)
def test_characters(name, settings, cuts, tmp_path, monkeypatch):
    """Vocabularies without merges, which may be cut before every character if nothing looks on."""
    pre_tokenizer, normalizer, words = FAMILIES[name]
    every = sorted({*ALPHABET, *map(chr, range(0x500)), *LEVEL.alphabet(), "x"})
    if settings.get("unk_token"):
        every = [c for c in every if c not in "abT"]
    every += [f"##{c}" for c in every] + [f"{c}</w>" for c in every]
    every += [f"##{c}" for c in every if c.endswith("</w>")] + ["the", "cat"]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *every])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], **settings))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    anywhere = cuts and name in ("nothing", "level without its rule")
    check(tmp_path, backend, monkeypatch, anywhere or words)


@pytest.mark.parametrize(
    "token, cuts",
    [
        (AddedToken("cat"), True),
        (AddedToken("   ", normalized=False), True),
        (AddedToken("the mat"), False),
        (AddedToken("hat sat"), False),
        (AddedToken("cat's", rstrip=True), False),
        (AddedToken("sat", lstrip=True), True),
        (AddedToken("hat", single_word=True), True),
    ],
)
def test_added_tokens(token, cuts, tmp_path, monkeypatch):
    backend = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = LEVEL(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=LEVEL.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([TEXT], trainer)
    backend.add_tokens([token])
    check(tmp_path, backend, monkeypatch, cuts)
