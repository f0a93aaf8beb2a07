"""A hub that does not answer is asked once."""

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants

from mdlm.data import wikitext2
from mdlm.data.text import hub_stream
from mdlm.errors import InputError


@pytest.fixture
def asked(monkeypatch):
    """The hub is out of reach; the list grows with each question."""
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    hub_stream.hub_trouble.cache_clear()
    yield asked
    hub_stream.hub_trouble.cache_clear()


def test_it_is_asked_once_and_the_line_says_what_to_do(asked):
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            _ = wikitext2().source.splits
        assert str(caught.value) == (
            "data set Salesforce/wikitext (wikitext-2-raw-v1) cannot be read: the hub does not"
            " answer (no route); name a folder with a copy of it"
        )
    assert len(asked) == 1 and asked[0][1] <= 10


def test_a_folder_does_not_ask_it(asked, tmp_path):
    with pytest.raises(InputError):
        _ = wikitext2(str(tmp_path)).source.splits
    assert not asked
