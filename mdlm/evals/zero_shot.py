"""Texts that a model was not trained on, for `mdlm eval RUN --on NAME`.

The protocol of SEDD and MDLM (arXiv:2406.07524, table 3): the cleaned texts of a split are
concatenated, without EOS between them, and cut into rows of the training length. The tokenizer is
that of the run. Published numbers are with GPT-2's tokenizer, in rows of 1024 with BOS and EOS at
their ends, trained on OpenWebText.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mdlm.data import recipes
from mdlm.data.dataset import TextData
from mdlm.data.packing import Packing, Wrap
from mdlm.data.sources import TextFiles
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.errors import InputError


@dataclass(frozen=True)
class ZeroShot:
    """A text, its split to evaluate, and the *published* perplexities of MDLM (a bound), SEDD (a
    bound) and an autoregressive model trained on OpenWebText (arXiv:2406.07524, table 3)."""

    recipe: Callable[..., TextData]
    split: str
    mdlm: float
    sedd: float
    ar: float


TEXTS = {
    "ptb": ZeroShot(recipes.ptb, "valid", 95.26, 100.09, 82.05),
    "wikitext2": ZeroShot(recipes.wikitext2, "valid", 32.83, 34.28, 25.75),
    "wikitext103": ZeroShot(recipes.wikitext103, "valid", 32.83, 34.28, 25.75),
    "lm1b": ZeroShot(recipes.lm1b_padded, "test", 67.01, 68.20, 51.25),
    "lambada": ZeroShot(recipes.lambada, "test", 47.52, 49.86, 51.28),
    "ag_news": ZeroShot(recipes.ag_news, "test", 61.15, 62.09, 52.09),
    "pubmed": ZeroShot(recipes.pubmed, "valid", 41.89, 44.53, 49.01),
    "arxiv": ZeroShot(recipes.arxiv, "valid", 37.37, 38.48, 41.73),
}


def check_name(name: str) -> None:
    """Raises InputError if there is no text of that name."""
    if name not in TEXTS:
        raise InputError(f"--on {name}: allowed are {', '.join(TEXTS)}, all")


def zero_shot(
    name: str, tokenizer: TokenizerConfig, packing: Packing, paths: tuple[str, ...] = ()
) -> tuple[TextData, str]:
    """Returns the text of a name, with a run's tokenizer and row length, and the split to evaluate.

    `paths` are a folder with a copy of the data set, or files of its split, which are cleaned as
    the data set is; none for the hub. Raises InputError if the name is unknown.
    """
    check_name(name)
    chosen = TEXTS[name]
    is_files = bool(paths) and not Path(paths[0]).is_dir()
    source: Source = chosen.recipe(None if is_files or not paths else paths[0]).source
    if is_files:
        source = TextFiles(train=paths, valid=paths, test=paths, clean=source.clean)
    rows = Wrap(length=packing.length, row_specials=packing.frame[0], eos=False)
    return TextData(source=source, tokenizer=tokenizer, packing=rows), chosen.split
