"""Published corpora with the text, splits, tokens and rows that the literature uses.

Each function returns the `TextData` of an experiment. `path` is a folder with a copy of the data
set (from `save_to_disk`, Parquet or JSON lines), for machines without the hub; `store` is the
folder of a token store, which `mdlm prepare` makes. Numbers are *published* ones, from the papers
named, and are comparable only under the protocol beside them; `docs/data.md` has the table.

A perplexity is per token of its tokenizer and depends on the protocol: sentences padded or rows
wrapped, text cleaned or not, with or without an EOS between documents.
"""

from typing import Any

from mdlm.data.dataset import TextData
from mdlm.data.packing import Pad, Wrap
from mdlm.data.text.cleaning import LM1B, PTB, Lambada, ScientificPapers, WikiText
from mdlm.data.text.fasta import Fasta
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.data.text.text8 import Text8File
from mdlm.data.tokenizers import BPE, Dna, Pretrained, Text8, TokenizerConfig

GPT2 = Pretrained(name="gpt2")
BERT = Pretrained(name="bert-base-uncased")
PARQUET = "refs/convert/parquet"
"""The revision under which the hub keeps a Parquet conversion of data sets made by a script."""


def hub(name: str, path: str | None, **chosen: Any) -> HuggingFace:
    """Returns a data set of the hub, or its copy in a folder, which has no configurations."""
    if path is not None:
        for where in ("config", "data_dir", "revision", "streaming"):
            chosen.pop(where, None)
    return HuggingFace(path=path or name, **chosen)


def text8(path: str = "text8.zip", *, length: int = 256, store: str | None = None) -> TextData:
    """text8: characters of Wikipedia, 27 symbols, 90M train, then 5M valid, then 5M test.

    Rows are consecutive parts of the text, and nothing is inserted, so the test split has exactly
    5,000,000 characters (published evaluations drop the last 64, which fill no row).
    *Published*, test, bits per character: MD4 1.37, GenMD4 1.34, SEDD 1.39, D3PM absorbing 1.45,
    autoregressive 1.23 (arXiv:2406.04329, table 2).
    """
    return TextData(
        source=Text8File(path=path),
        tokenizer=Text8(),
        packing=Wrap(length=length, row_specials=False, eos=False),
        store=store,
    )


def lm1b_padded(path: str | None = None, *, store: str | None = None) -> TextData:
    """One Billion Words, one sentence per row of 128, as in MDLM's table 1.

    bert-base-uncased tokens of the cleaned sentences, [CLS] sentence [SEP], then padding, which the
    network attends to but which does not count in the loss. There is no valid split; test is used.
    *Published*, test perplexity: MDLM <= 27.04, SEDD <= 32.79, autoregressive 22.32
    (arXiv:2406.07524, table 1; 33B tokens). Packed rows (`lm1b_packed`) are a harder task.
    """
    return TextData(
        source=hub("dvruette/lm1b", path, valid=None, clean=LM1B()),
        tokenizer=BERT,
        packing=Pad(length=128, pad="as_published"),
        store=store,
    )


def lm1b_packed(path: str | None = None, *, store: str | None = None) -> TextData:
    """One Billion Words, sentences concatenated, as in BD3-LM's and DUO's tables.

    As `lm1b_padded`, but the sentences in order, each followed by [SEP], are cut into rows of 128
    with [CLS] and [SEP] at their ends; the remainder is dropped.
    *Published*, test perplexity: MDLM <= 31.78, SEDD <= 32.68, BD3-LM of blocks of 4 <= 28.23,
    autoregressive 22.83 (arXiv:2503.09573; 65B tokens).
    """
    return TextData(
        source=hub("dvruette/lm1b", path, valid=None, clean=LM1B()),
        tokenizer=BERT,
        packing=Wrap(length=128, remainder="drop"),
        store=store,
    )


def openwebtext(
    path: str | None = None, *, length: int = 1024, store: str | None = None
) -> TextData:
    """OpenWebText, its last 100,000 documents held out, as in MDLM's table 2.

    GPT-2's tokens and a mask (50,258), EOS after each document, rows with BOS and EOS at their
    ends (both are the same token), the remainder dropped.
    *Published*, valid perplexity: MDLM <= 23.21 (<= 22.98 as re-measured by BD3-LM), SEDD
    <= 24.10, autoregressive 17.54 (arXiv:2406.07524, table 2; arXiv:2503.09573, table 4). MD4's
    <= 22.13 is of another split, 2% of the documents.
    """
    source = hub("Skylion007/openwebtext", path, held_out_documents=100_000, test=None)
    packing = Wrap(length=length, remainder="drop")
    return TextData(source=source, tokenizer=GPT2, packing=packing, store=store)


def fineweb_edu(
    config: str = "sample-10BT",
    *,
    path: str | None = None,
    length: int = 1024,
    store: str | None = None,
) -> TextData:
    """FineWeb-Edu, GPT-2's tokens; the first 10,000 documents held out.

    `config` is the hub's: `sample-10BT`, `sample-100BT`, `sample-350BT`, a dump, or `default` (all,
    1.3T tokens). Text is streamed and not kept on disk: give a `store`. The data set has one split;
    the first documents are held out because a stream may not know its length. No published
    perplexity is of this split. (*Published* of this corpus: HellaSwag, MD4-S 30% after 200k
    steps, arXiv:2406.04329.)
    """
    source = hub(
        "HuggingFaceFW/fineweb-edu",
        path,
        config=config,
        held_out_documents=10_000,
        held_out_at="start",
        test=None,
        streaming=True,
    )
    packing = Wrap(length=length)
    return TextData(source=source, tokenizer=GPT2, packing=packing, store=store)


def tinystories(
    path: str | None = None,
    *,
    tokenizer: TokenizerConfig = BPE(vocab_size=8192),  # noqa: B008 (frozen)
    length: int = 512,
    store: str | None = None,
) -> TextData:
    """TinyStories: 2.1M stories in the words of a small child, some of them empty.

    Byte pairs trained on the training stories. The valid split is the data set's own.
    *Published*: arXiv:2603.22075 trains rows of 512 for 20k steps of 32, with other tokens.
    """
    source = hub("roneneldan/TinyStories", path, test=None)
    packing = Wrap(length=length)
    return TextData(source=source, tokenizer=tokenizer, packing=packing, store=store)


def genome(
    files: str = "hg38.ml.fa",
    *,
    intervals: str | None = "human-sequences.bed",
    interval_length: int | None = 2**20,
    length: int = 1024,
    reverse_complement: bool = False,
    store: str | None = None,
) -> TextData:
    """The human genome by characters: the HG38 protocol of HyenaDNA, Caduceus and MDLM.

    The intervals of `human-sequences.bed` (34,021 train, 2,213 valid, 1,937 test), each extended
    to 2^20 bases from its start, cut into rows; repeats in upper case. That is 35.7 billion bases
    of training text, many of them several times: a store of 71 GB, and twice that with
    `reverse_complement`. With `interval_length=None` intervals keep their 131,072 bases, an eighth
    of that. Rows equal the published ones unless an interval reaches the end of its chromosome.
    Two things differ: N is a token like others (published losses skip it), and
    `reverse_complement` adds the other strand to each epoch (Caduceus chooses one at random).
    *Published*, perplexity at 1024 bases: MDLM <= 3.199, SEDD <= 3.216, Plaid <= 3.240,
    autoregressive Mamba 3.067 (arXiv:2406.07524, table 6; networks of 0.5M parameters).
    Other genomes: `intervals=None`, and see `Fasta`.
    """
    source = Fasta(
        files=files,
        intervals=intervals,
        interval_length=None if intervals is None else interval_length,
        reverse_complement=reverse_complement,
    )
    packing = Wrap(length=length, row_specials=False, eos=intervals is None)
    return TextData(source=source, tokenizer=Dna(), packing=packing, store=store)


def concatenated(
    source: HuggingFace, tokenizer: TokenizerConfig, length: int, store: str | None = None
) -> TextData:
    """Returns texts concatenated with nothing between them, as for zero-shot perplexities."""
    packing = Wrap(length=length, eos=False)
    return TextData(source=source, tokenizer=tokenizer, packing=packing, store=store)


def wikitext2(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """WikiText-2, raw and cleaned; rows of the data set are lines, many of them empty.

    *Published*, zero-shot after OpenWebText, valid: see `zero_shot`. Published perplexities of
    models trained on it are per word, and not comparable with those per token.
    """
    source = hub("Salesforce/wikitext", path, config="wikitext-2-raw-v1", clean=WikiText())
    return concatenated(source, tokenizer, length)


def wikitext103(
    path: str | None = None,
    *,
    tokenizer: TokenizerConfig = GPT2,
    length: int = 1024,
    store: str | None = None,
) -> TextData:
    """WikiText-103: as `wikitext2`, with more training text; valid and test are the same text."""
    source = hub("Salesforce/wikitext", path, config="wikitext-103-raw-v1", clean=WikiText())
    return concatenated(source, tokenizer, length, store)


def ptb(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """Penn Treebank: sentences in lower case, N for numbers and <unk> for rare words; cleaned."""
    source = hub(
        "ptb-text-only/ptb_text_only",
        path,
        revision=PARQUET,
        text_field="sentence",
        clean=PTB(),
    )
    return concatenated(source, tokenizer, length)


def lambada(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """LAMBADA as OpenAI prepared it: 5,153 passages, only a test split; cleaned."""
    source = hub("EleutherAI/lambada_openai", path, config="default", clean=Lambada())
    return concatenated(source, tokenizer, length)


def ag_news(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """AG News: title and first words of news, 120,000 train and 7,600 test; cleaned by the rules of
    WikiText and LM1B, as MDLM's appendix says (its code does not clean this corpus)."""
    source = hub("fancyzhx/ag_news", path, valid=None, clean=ScientificPapers())
    return concatenated(source, tokenizer, length)


def arxiv(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """Articles from arXiv (`scientific_papers`), formulas as @xmath0; cleaned."""
    return concatenated(_papers("arxiv", path), tokenizer, length)


def pubmed(
    path: str | None = None, *, tokenizer: TokenizerConfig = GPT2, length: int = 1024
) -> TextData:
    """Articles from PubMed (`scientific_papers`); cleaned."""
    return concatenated(_papers("pubmed", path), tokenizer, length)


def _papers(which: str, path: str | None) -> HuggingFace:
    return hub(
        "armanc/scientific_papers",
        path,
        data_dir=which,
        revision=PARQUET,
        text_field="article",
        clean=ScientificPapers(),
    )
