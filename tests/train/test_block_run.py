"""Block diffusion as a run: trained, scored, searched for its interval of times, sampled."""

import numpy as np
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Model, Perplexity, load_file
from mdlm.objectives import BlockNelbo
from mdlm.objectives.clip_search import candidates
from mdlm.run import load
from mdlm.train.session import Session

FILE = tiny.FILE.replace("from mdlm.models import DiT", "").replace(
    "from mdlm.samplers import Ancestral",
    "from mdlm.models import BlockDiT\n"
    "from mdlm.objectives import BlockNelbo\n"
    "from mdlm.samplers import BlockByBlock",
)
FILE = FILE.replace(
    "network=DiT(width=32, depth=2, heads=2, cond_dim=16, dropout=0.1)",
    "network=BlockDiT(width=32, depth=1, heads=2, cond_dim=16, block_size=8),\n"
    "    objective=BlockNelbo(block_size=8, low=0.3, high=0.8)",
).replace("Ancestral(steps=16)", "BlockByBlock(block_size=8, steps=4)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("block")
    source = FILE.format(text=str(tiny.write_text(folder / "text.txt")))
    (folder / "block.py").write_text(source)
    experiment = load_file(folder / "block.py")
    list(Session(experiment, folder / "run", source=source, overrides=[]).train())
    return load(folder / "run")


@pytest.mark.slow
def test_what_is_reported_is_the_bound(run):
    """Trained on an interval, scored on the whole; and the whole is the harder."""
    assert not run.experiment.objective.reported().is_clipped
    metric = run.perplexity(Perplexity(passes=2))[0]
    assert "NELBO, blocks of 8, continuous time" in metric.protocol
    lines = run.folder.log.metrics()
    assert [line["nats per token"] for line in lines if line["kind"] == "valid"][-1] < np.log(256)
    exact = BlockNelbo(block_size=1, low=1.0)
    assert exact.reported() is exact
    published = BlockNelbo(block_size=8, low=1e-3)
    assert published.reported() is published


@pytest.mark.slow
def test_text_keeps_its_beginning(run):
    text = run.generate("the quick brown ", length=48).texts[0].text
    assert text.startswith("the quick brown ") and len(text) > 20
    assert "[MASK]" not in text


@pytest.mark.slow
def test_search(run):
    table = run.clip_search(batches=2)
    assert len(table) == len(candidates(8)) and (table[0].low, table[0].high) != (1e-3, 1.0)
    assert [i.spread for i in table] == sorted(i.spread for i in table)
    assert (table[-1].low, table[-1].high)[0] < 0.05  # small times spread most


@pytest.mark.slow
def test_search_is_for_block_diffusion(run, monkeypatch):
    text = run.experiment.data.source.train
    monkeypatch.setattr(run, "model", Model(tiny.experiment(text), run.tokenizer.vocab))
    with pytest.raises(InputError, match=r"objective=Nelbo\(\): .* needs BlockNelbo"):
        run.clip_search()
