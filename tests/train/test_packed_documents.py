"""Documents packed into one row know nothing of each other, from the data to the bound."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from store_maker import write_store

from mdlm.data.loader import TrainLoader, evaluation_batches
from mdlm.data.packing import Wrap
from mdlm.data.tokenizers import Bytes
from mdlm.evals import scorer
from mdlm.evals.ngrams import Baselines
from mdlm.experiment.model import Model
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.train.batches import in_training
from mdlm.types import Batch

LENGTHS = (9, 0, 12, 5, 20)


@pytest.fixture
def experiment(tmp_path):
    return tiny.experiment(tiny.write_text(tmp_path / "text.txt", words=600))


def packed(vocab, changed=None):
    """Rows of 32, of which the second is padded; with the tokens of one document changed."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 200, n).astype(np.int32) for n in LENGTHS]
    if changed is not None:
        documents[changed] = (documents[changed] + 7) % 200
    return Wrap(length=32, row_specials=False, segments=True).of(documents, vocab)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dit", "causal"])
def test_a_document_does_not_see_its_neighbours(experiment, network, key):
    dit = DiT(width=32, depth=1, heads=2, cond_dim=16)
    parts = {
        "dit": {"network": dit},
        "causal": {
            "network": CausalTransformer(width=32, depth=1, heads=2),
            "objective": Autoregressive(),
            "sampler": LeftToRight(),
        },
    }[network]
    vocab = Bytes().build([]).vocab
    model = Model(replace(experiment, **parts), vocab)
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(3), a.shape), model.init(key)
    )
    mesh = MeshShape(data=1).build(jax.devices()[:1])

    @jax.jit
    def bounds(batch):
        terms = model.evaluate(params, jax.random.key(1), batch)
        return terms.bound, terms.count

    def scored(rows, apart=True):
        [host] = evaluation_batches(rows, 2)
        assert host["segment_ids"].dtype == np.int32 and "is_valid" in host
        if not apart:
            host["segment_ids"] = 0 * host["segment_ids"]
        return [np.asarray(x) for x in bounds(Batch(**put_on_mesh(mesh, host)))]

    rows = packed(vocab)
    taken = rows.all()
    plain, count = scored(rows)
    np.testing.assert_array_equal(count[:, 1:], taken.is_valid[:, 1:])
    assert rows.is_padded and not plain[~taken.is_valid].any()
    other, _ = scored(packed(vocab, changed=2))
    # 10 tokens, an EOS of its own, 13 and 6 tokens and 2 of the last: the first row; then the rest.
    assert np.bincount(taken.segment_ids[0]).tolist() == [10, 1, 13, 6, 2]
    same = np.ones(plain.shape, bool)
    same[0, 11:24] = False
    np.testing.assert_array_equal(other[same], plain[same])
    assert (other != plain)[~same].any()
    together, _ = scored(rows, apart=False)
    changed, _ = scored(packed(vocab, changed=2), apart=False)
    assert (changed != together)[same].any()  # so that the above says something
    assert (together != plain)[same].any()


def test_training_batches_hold_segments():
    rows = packed(Bytes().build([]).vocab)
    batch = TrainLoader(rows, 4, 0).batch_at(0)
    assert batch["segment_ids"].shape == batch["tokens"].shape == (4, 32)
    assert "segment_ids" in in_training(batch, np.arange(4))
    expected = rows.take(TrainLoader(rows, 4, 0).indices_at(0)).segment_ids
    np.testing.assert_array_equal(batch["segment_ids"], expected)


def test_count_tables_of_a_store_are_of_its_first_rows(experiment, tmp_path, monkeypatch):
    data = experiment.data
    tokenizer = data.load().tokenizer
    texts = {split: tokenizer.encode(data.source.documents(split)) for split in ("train", "valid")}
    write_store(
        str(tmp_path / "store"),
        texts,
        tokenizer,
        eos=tokenizer.vocab.eos_id,
        shard_tokens=1000,
        source=repr(data.source),
        made_by=repr(data.tokenizer),
    )
    stored = replace(experiment, data=replace(data, store=str(tmp_path / "store")))
    mesh = MeshShape(data=1).build(jax.devices()[:1])

    def metrics(e):
        dataset = e.data.load()
        return scorer.Scorer(Model(e, dataset.vocab), mesh, dataset).ngrams("valid")

    plain, whole = metrics(experiment), metrics(stored)
    assert [m.value for m in plain if "token" in m.name] == [
        m.value for m in whole if "token" in m.name
    ]
    assert {m.protocol for m in plain + whole} == {"valid, counts of the training split"}
    monkeypatch.setattr(scorer, "TABLE_TOKENS", 10 * 32 + 5)
    assert [m.value for m in metrics(experiment)] == [m.value for m in plain]
    few = metrics(stored)
    assert {m.protocol for m in few} == {"valid, counts of the first 10 rows of the training split"}
    dataset = stored.data.load()
    learnt, valid = dataset.train.rows.first(10).all(), dataset.valid.rows.all()
    tables = Baselines(learnt.tokens, learnt.loss_mask, dataset.vocab.size)
    nats = tables.nats(valid.tokens, valid.loss_mask)
    for name, total in nats.items():
        [metric] = [m for m in few if m.name == f"{name} nats per token"]
        assert metric.value == pytest.approx(total / valid.loss_mask.sum())
