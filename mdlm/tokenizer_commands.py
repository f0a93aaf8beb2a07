"""`mdlm tokenizer train`."""

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.progress import Progress
from mdlm.vocab import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.data.encoding import Tokenizer
    from mdlm.data.sources import Source
    from mdlm.data.tokenizers import TokenizerConfig

SAMPLE = 2_000_000
"""Characters that a new tokenizer is tried on."""


def train(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.data.prepare import training_text

    config, source, out = _config(args), _source(args.texts, changes), Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    if (out / "tokenizer.json").exists():
        raise InputError(f"--out {out} holds a tokenizer already: name another folder")
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
        raise InputError("--cased: is for --kind wordpiece; byte pairs keep the case always")
    try:
        if args.kind == "bpe":
            return BPE(vocab_size=args.vocab_size)
        return WordPiece(vocab_size=args.vocab_size, lowercase=not args.cased)
    except ValueError as error:
        raise InputError(f"--vocab-size {args.vocab_size}: {error}") from error


def _source(names: list[str], changes: list[tuple[str, str]]) -> "Source":
    """The text of an experiment, or that of files."""
    from mdlm.data.sources import TextFiles

    if any(Path(name).suffix == ".py" for name in names):
        if len(names) > 1:
            raise InputError(f"{len(names)} names: give text files, or one experiment")
        from mdlm.data.mixture import Mixture
        from mdlm.experiment import load_data_file
        from mdlm.overrides import apply

        data = apply(load_data_file(names[0]), changes).data
        if isinstance(data, Mixture):
            raise InputError(
                f"{names[0]}: its data are a mixture; name the file of one part, or text files"
            )
        return data.source
    if changes:
        raise InputError(f"--{changes[0][0]}: only the settings of an experiment can be changed")
    return TextFiles(train=tuple(names), test_fraction=0.0)


def _first(texts, characters: int) -> list[str]:
    """The first texts, until there are so many characters."""
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
    """What came out: its size, how well it packs text, how it cuts a sentence, what to do next."""
    encoded = tokenizer.encode(sample)
    size, tokens = sum(len(text.encode()) for text in sample), max(sum(map(len, encoded)), 1)
    there = tokenizer.vocab.size
    fewer = "" if there == wanted else f" ({wanted:,} asked for: the text has no more)"
    lines = [
        f"{out}: {there:,} tokens{fewer}",
        f"  {size / tokens:.2f} bytes per token on {size / 1e6:.1f} MB of {whose} text",
    ]
    unknown = tokenizer.backend.token_to_id("[UNK]")
    if unknown is not None:
        missed = sum(int((ids == unknown).sum()) for ids in encoded)
        lines.append(f"  {missed / tokens:.3%} of its tokens are [UNK]")
    sentences = (line.strip() for text in sample for line in text.splitlines())
    for sentence in islice((line for line in sentences if len(line) >= 40), 1):
        shown = sentence if len(sentence) <= 70 else sentence[:70].rsplit(" ", 1)[0]
        [ids] = tokenizer.encode([shown])
        pieces = tokenizer.pieces(ids.tolist())
        lines.append("  " + "|".join(pieces[i] for i in ids.tolist()))
    lines.append(f'next: tokenizer=Pretrained(name="{out}") in an experiment')
    return "\n".join(lines)
