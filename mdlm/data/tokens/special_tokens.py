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


def padding(vocab: Vocab, *, is_seen: bool = True) -> int:
    """Returns the padding token: PAD, or EOS if there is no PAD. Where no token attends to padding
    and none of it is predicted (`is_seen=False`), a vocabulary without both has any other token
    than the mask.

    Raises InputError if both are missing and padding is seen.
    """
    if vocab.pad_id is not None:
        return vocab.pad_id
    if not is_seen and end_of(vocab) is None:
        return int(vocab.mask_id == 0)
    return ends(vocab)[1]


def storage(vocab: Vocab) -> type[np.integer]:
    """Returns the dtype of the tokens of rows: 16 bits if the vocabulary fits, else 32."""
    return np.uint16 if vocab.size <= 2**16 else np.int32
