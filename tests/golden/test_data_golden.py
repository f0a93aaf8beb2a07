"""Text preparation against the published project's own output."""

import numpy as np
import pytest

from mdlm.data.packing import Wrap
from mdlm.data.tokenizers import Text8
from mdlm.errors import InputError
from mdlm.types import Vocab

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("case", range(6))
def test_wrap(golden, case):
    case = golden("data_prep.json")["wrap"][case]
    packing = Wrap(
        length=case["block_size"], row_specials=case["insert_special_tokens"], remainder="drop"
    )
    vocab = Vocab(size=64, mask_id=63, bos_id=case["bos"], eos_id=case["eos"])
    documents = [np.array(ids[:-1], np.int32) for ids in case["docs_with_eos"]]
    if case["input_ids"]:
        rows = packing.of(documents, vocab).all()
        assert rows.tokens.tolist() == case["input_ids"]
        assert rows.loss_mask.all() and rows.is_valid.all()
    else:
        with pytest.raises(InputError, match="too few for one row"):
            packing.of(documents, vocab)


def test_text8_tokenizer(golden):
    case = golden("data_prep.json")["text8_tokenizer"]
    tokenizer = Text8().build([])
    assert tokenizer.backend.get_vocab(with_added_tokens=True) == case["vocab"]
    [ids] = tokenizer.encode([case["text"]])
    assert ids.tolist() == case["ids"]
    assert tokenizer.decode(ids) == case["decoded"]
    vocab = tokenizer.vocab
    assert (vocab.size, vocab.mask_id, vocab.bos_id, vocab.eos_id, vocab.pad_id) == (
        len(case["vocab"]),
        case["mask_id"],
        case["bos_id"],
        case["eos_id"],
        case["vocab"]["[PAD]"],
    )
