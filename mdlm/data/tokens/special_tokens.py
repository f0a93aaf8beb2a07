"""The special tokens that stand around texts and rows, by a vocabulary's ids."""

import numpy as np

from mdlm.errors import InputError
from mdlm.types import Vocab


def ends(vocab: Vocab) -> tuple[int, int]:
    """BOS and EOS; where there is no BOS, EOS stands in for it (as with GPT-2), and vice versa."""
    bos = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
    eos = vocab.bos_id if vocab.eos_id is None else vocab.eos_id
    if bos is None or eos is None:
        raise InputError(
            "the tokenizer has no token that ends a text: name one, as in Pretrained(eos=...)"
        )
    return bos, eos


def padding(vocab: Vocab) -> int:
    """What stands at padding: PAD, or else EOS, as is usual where there is no PAD."""
    return ends(vocab)[1] if vocab.pad_id is None else vocab.pad_id


def storage(vocab: Vocab) -> type[np.integer]:
    """Tokens of rows are held in 16 bits where the vocabulary fits."""
    return np.uint16 if vocab.size <= 2**16 else np.int32
