"""`mdlm tokenizer train`."""

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.cli.arguments import whole
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.text.source import Source
    from mdlm.data.tokenizers import TokenizerConfig
    from mdlm.data.tokens.tokenizer import Tokenizer

SAMPLE = 2_000_000
"""Characters of text on which a new tokenizer is measured."""


def run(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.data.preparation.prepare import training_text

    if not args.out:
        raise InputError("--out '': is no name of a folder")
    config, source, out = _config(args), _source(args.texts, changes), Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    if (out / "tokenizer.json").exists():
        raise InputError(f"--out {out}: holds a tokenizer already; name another folder")
    with Progress() as progress:
        tokenizer = config.build(training_text(source), progress.stage)
    held_out = "valid" in source.splits
    pieces = source.pieces("valid" if held_out else "train")
    sample = _first((piece.text for piece in pieces), SAMPLE)
    tokenizer.save(out)
    whose = "held-out" if held_out else "training"
    print(_closing_words(out, args.vocab_size, tokenizer, sample, whose))
    return 0


def _config(args: argparse.Namespace) -> "TokenizerConfig":
    from mdlm.data.tokenizers import BPE, WordPiece

    if args.cased and args.kind != "wordpiece":
        raise InputError("--cased: allowed with --kind wordpiece only; bpe always keeps the case")
    try:
        if args.kind == "bpe":
            return BPE(vocab_size=args.vocab_size)
        return WordPiece(vocab_size=args.vocab_size, lowercase=not args.cased)
    except ValueError as error:
        raise InputError(f"--vocab-size {args.vocab_size}: {error}") from error


def _source(names: list[str], changes: list[tuple[str, str]]) -> "Source":
    """The text of an experiment, or of text files. Raises InputError if the names mix both."""
    from mdlm.data.sources import TextFiles
    from mdlm.experiment.shipped import is_name

    if any(Path(name).suffix == ".py" or is_name(name) for name in names):
        if len(names) > 1:
            raise InputError(f"{len(names)} names: give text files, or one experiment")
        from mdlm.config.overrides import apply
        from mdlm.data.mixture import Mixture
        from mdlm.experiment.loading import load_data_file

        data = apply(load_data_file(names[0]), changes).data
        if isinstance(data, Mixture):
            raise InputError(
                f"{names[0]}: its data are a mixture; give an experiment with one source, or "
                "text files"
            )
        return data.source
    if changes:
        raise InputError(f"--{changes[0][0]}: allowed with an experiment only, not with text files")
    return TextFiles(train=tuple(names), test_fraction=0.0)


def _first(texts, characters: int) -> list[str]:
    """The first texts, cut off at a total number of characters."""
    found, size = [], 0
    for text in texts:
        found.append(text[: characters - size])
        size += len(found[-1])
        if size >= characters:
            break
    return found


def _closing_words(
    out: Path, wanted: int, tokenizer: "Tokenizer", sample: list[str], whose: str
) -> str:
    """Describes the tokenizer: its size, bytes per token, how it splits a sentence."""
    encoded = tokenizer.encode(sample)
    size, tokens = sum(len(text.encode()) for text in sample), max(sum(map(len, encoded)), 1)
    there = tokenizer.vocab.size
    fewer = "" if there == wanted else f" ({wanted:,} asked for: the text has no more)"
    lines = [
        f"{out}: {there:,} tokens{fewer}",
        f"  {size / tokens:.2f} bytes per token on {size / 1e6:.1f} MB of {whose} text",
    ]
    if tokenizer.unk_id is not None:
        missed = sum(int((ids == tokenizer.unk_id).sum()) for ids in encoded)
        lines.append(f"  {missed / tokens:.3%} of its tokens are [UNK]")
    sentences = (line.strip() for text in sample for line in text.splitlines())
    for sentence in islice((line for line in sentences if len(line) >= 40), 1):
        shown = sentence if len(sentence) <= 70 else sentence[:70].rsplit(" ", 1)[0]
        [ids] = tokenizer.encode([shown])
        pieces = tokenizer.pieces(ids.tolist())
        lines.append("  " + "|".join(pieces[i] for i in ids.tolist()))
    lines.append(f"next: tokenizer=Pretrained(name={str(out)!r}) in an experiment")
    return "\n".join(lines)


TOKENIZER_HELP = """\
examples:
  mdlm tokenizer train books/*.txt.gz --vocab-size 8192 --out tokenizers/books
  mdlm tokenizer train owt_small --kind wordpiece --out tokenizers/owt
  mdlm tokenizer train books --data.source.train 'mine/*.txt.gz' --out t

The tokenizer is trained on text files (.txt, .jsonl, .parquet; the last 5% are held out to measure
it), or on the training split of an experiment. The vocabulary includes [BOS], [EOS], [PAD] and
[MASK]. To use the tokenizer, name its folder in an experiment:

  tokenizer=Pretrained(name="tokenizers/books")

bpe: byte-level BPE with GPT-2's pre-tokenization; every text decodes to exactly itself.
wordpiece: as in BERT, in lower case unless --cased; decoding does not restore spaces, and rare
characters become [UNK]."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=("train",), help="train a new tokenizer")
    sub.add_argument(
        "texts",
        metavar="FILE",
        nargs="+",
        help="text files, or one experiment (a name or a .py file)",
    )
    sub.add_argument("--out", required=True, metavar="FOLDER", help="folder to create")
    sub.add_argument(
        "--kind", choices=("bpe", "wordpiece"), default="bpe", help="algorithm (default: bpe)"
    )
    sub.add_argument(
        "--vocab-size",
        type=whole,
        default=32768,
        metavar="N",
        help="tokens in the vocabulary, special tokens included (default: 32768)",
    )
    sub.add_argument("--cased", action="store_true", help="wordpiece: keep case and accents")


COMMAND = Command(
    name="tokenizer",
    help="train a tokenizer on text",
    epilog=TOKENIZER_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    computes=False,
    writes_files=True,
)
