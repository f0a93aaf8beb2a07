"""Blanks in a text: what is given stays to the letter, whatever the tokenizer does with it."""

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from mdlm.data.tokenizers import BPE, Bytes, Characters, Pretrained, WordPiece
from mdlm.errors import InputError
from mdlm.generation.template import Template
from mdlm.generation.texts import Text, text_of

WORDS = "the that hat he her not this at is in then, that. The Other one\n"


def llama_like(tmp_path, lines=True):
    """BPE with bytes for unknown characters, a space before each text and in place of spaces."""
    special = ["<unk>", "<s>", "</s>", *([f"<0x{i:02X}>" for i in range(256)] if lines else ())]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    settings = {"vocab_size": 330, "special_tokens": special, "show_progress": False}
    trained.train_from_iterator([WORDS[:-1]] * 9, trainers.BpeTrainer(**settings))
    vocab = trained.get_vocab(with_added_tokens=False)
    import json

    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=lines)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(content=" ", left=1)]
    )  # fmt: skip
    backend.add_special_tokens([AddedToken(name, special=True) for name in special[:3]])
    backend.save(str(tmp_path / "tokenizer.json"))
    return Pretrained(name=str(tmp_path)).build([])


def metaspace(tmp_path):
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    settings = {"vocab_size": 60, "special_tokens": ["<s>", "</s>", "<unk>"], "unk_token": "<unk>"}
    trainer = trainers.UnigramTrainer(show_progress=False, **settings)
    backend.train_from_iterator([WORDS] * 9, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    return Pretrained(name=str(tmp_path)).build([])


MAKERS = {
    "llama": llama_like,
    "llama without a line break": lambda folder: llama_like(folder, lines=False),
    "metaspace": metaspace,
    "bpe": lambda _: BPE(vocab_size=300).build([WORDS] * 9),
    "bytes": lambda _: Bytes().build([]),
    "characters": lambda _: Characters().build([WORDS]),
    "word pieces": lambda _: WordPiece(vocab_size=80).build([WORDS] * 9),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "text", ["th[MASK]at, he[MASK:2], not", "[MASK]the[MASK][MASK: 2]  hat", "The Other [MASK]"]
)
def test_what_is_given_stays_to_the_letter(name, text, tmp_path):
    tokenizer = MAKERS[name](tmp_path)
    template = Template.parse(text, 50)
    ids, is_open = template.encode(tokenizer)
    assert is_open.sum() == sum(template.blanks)
    for fill in ("hat", " is"):
        ids[is_open] = tokenizer.encode([fill])[0][0]
        found = template.filled(tokenizer, ids, is_open)
        assert found.tokens == tuple(ids.tolist()) and found.pieces == (found.text,)
        rest = found.text
        for i, given in enumerate(template.given):
            assert rest.startswith(given) if i == 0 else given in rest
            rest = rest[rest.index(given) + len(given) :]
        assert rest == "" or template.given[-1] == ""
    exact = name not in ("word pieces", "llama without a line break")
    if exact:  # nothing stands in front of the later parts; a text begins as it always does
        whole = tokenizer.decode(ids)
        assert found.text.strip() == whole.strip()


def test_documents_end_inside_a_blank():
    tokenizer = Bytes().build([])
    template = Template.parse("a[MASK:3]b", 9)
    ids, is_open = template.encode(tokenizer)
    ids[is_open] = [120, tokenizer.vocab.eos_id, 121]
    assert template.filled(tokenizer, ids, is_open) == Text(
        "axyb", tuple(ids.tolist()), ("ax", "yb")
    )


def test_what_is_no_blank():
    assert Template.parse("a [MASK : 3 ] b", 9) == Template(("a ", " b"), (3,))
    assert Template.parse("[MASKED] [MASK]", 9).given == ("[MASKED] ", "")
    for text, message in {
        "[MASK:3 not": r"'\[MASK:3 not' is no blank: write \[MASK\] .* \[MASK:3\]",
        "a [MASK] [MASK:x] b": r"'\[MASK:x\]' is no blank",
        "nothing": r"no \[MASK\]",
        "[MASK:0]": "a blank has 1 to 9 tokens",
        "[MASK:10]": "a blank has 1 to 9 tokens",
    }.items():
        with pytest.raises(InputError, match=message):
            Template.parse(text, 9)


def test_a_shown_text():
    tokenizer = Bytes().build([])
    eos = tokenizer.vocab.eos_id
    ids = np.array([*b"one\n", eos, *b"red \x1b[31m\r\x07\t2", eos])
    text = text_of(tokenizer, ids)
    assert text.pieces == ("one\n", "red \x1b[31m\r\x07\t2", "") and text.text == "".join(
        text.pieces
    )
    end = "[end of document]"
    assert text.shown == f"one\n{end}\nred \\x1b[31m\\r\\x07\t2\n{end}"
    assert text_of(tokenizer, ids[:3]).shown == "one" and Text("a\x9bb", ()).shown == "a\\x9bb"
    assert text_of(tokenizer, ids[:0]).shown == ""
