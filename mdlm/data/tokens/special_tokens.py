"""The special tokens at the ends of texts and rows, and the padding token, of a vocabulary."""

import numpy as np

from mdlm.errors import InputError
from mdlm.types import Vocab


def ends(vocab: Vocab) -> tuple[int, int]:
    """Returns BOS and EOS. If one is missing, the other is used for both, as for GPT-2.

    Raises InputError if both are missing.
    """
    bos = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
    eos = end_of(vocab)
    if bos is None or eos is None:
        raise InputError(
            "the tokenizer has neither BOS nor EOS: name one, for example Pretrained(eos=...)"
        )
    return bos, eos


def end_of(vocab: Vocab) -> int | None:
    """Returns the token that ends a document: EOS, or BOS if there is none; None without both."""
    return vocab.bos_id if vocab.eos_id is None else vocab.eos_id


def padding(vocab: Vocab) -> int:
    """Returns the padding token: PAD, or EOS if there is no PAD."""
    return ends(vocab)[1] if vocab.pad_id is None else vocab.pad_id


def storage(vocab: Vocab) -> type[np.integer]:
    """Returns the dtype of the tokens of rows: 16 bits if the vocabulary fits, else 32."""
    return np.uint16 if vocab.size <= 2**16 else np.int32
