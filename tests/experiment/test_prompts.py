"""A model of prompts and responses: the prompt stays clean, whatever the objective."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.data import Bytes, PairData, Pairs, Responses
from mdlm.experiment.model import Model
from mdlm.models import BlockDiT, CausalTransformer, DiT
from mdlm.objectives import Autoregressive, BlockNelbo, Complementary, LLaDA, Nelbo, UniformNelbo
from mdlm.parameterizations import Mean
from mdlm.processes import Masked, Uniform
from mdlm.samplers import LeftToRight, ParallelBlocks, Reverse
from mdlm.schedules import LogLinear
from mdlm.types import Batch, DenseLogits

B, L, PROMPT, END = 16, 16, 6, 13


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' * 40, encoding="utf-8")
    source = Pairs(train=str(path))
    return PairData(source=source, tokenizer=Bytes(), packing=Responses(length=L))


def batch():
    at = jnp.broadcast_to(jnp.arange(L), (B, L))
    return Batch(
        tokens=jax.random.randint(jax.random.key(3), (B, L), 0, 256),
        loss_mask=(at >= PROMPT) & (at < END),
        is_valid=at < END,
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


def asked(model, monkeypatch, part="evaluate"):
    """What the network is asked in a loss, and the terms of the loss."""
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs)
        rows = inputs.tokens.shape
        return DenseLogits(jnp.zeros((*rows, model.columns)))

    diffusion = Model.diffusion
    monkeypatch.setattr(
        Model, "diffusion", lambda self, p: replace(diffusion(self, p), denoise=denoise)
    )
    params = model.init(jax.random.key(0))
    terms = getattr(model, part)(params, jax.random.key(1), batch())
    return seen[-1], terms


CASES = {
    "nelbo": {},
    "llada": {"objective": LLaDA()},
    "complementary": {"objective": Complementary(), "process": Masked(schedule=LogLinear(eps=0.0))},
    "uniform": {
        "process": Uniform(),
        "parameterization": Mean(),
        "objective": UniformNelbo(),
        "sampler": Reverse(steps=4),
    },
    "blocks": {
        "network": BlockDiT(width=16, depth=1, heads=2, cond_dim=8, block_size=4),
        "objective": BlockNelbo(block_size=4),
        "sampler": ParallelBlocks(block_size=4),
        "time_condition": "t",
    },
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part", ["loss", "evaluate"])
def test_the_prompt_is_clean_and_not_scored(name, part, data, monkeypatch, tmp_path):
    experiment = tiny.experiment(tmp_path, data=data, **CASES[name])
    model = Model.on(experiment, data.load())
    inputs, terms = asked(model, monkeypatch, part)
    clean = np.asarray(batch().tokens)
    copies = inputs.tokens.shape[0] // B
    tokens = np.asarray(inputs.tokens).reshape(B, copies, L)
    assert copies == (2 if name == "complementary" and part == "loss" else 1)
    assert (tokens[..., :PROMPT] == clean[:, None, :PROMPT]).all()
    assert (tokens[..., END:] == clean[:, None, END:]).all()
    assert (tokens[..., PROMPT:END] != clean[:, None, PROMPT:END]).any()
    due = np.asarray(batch().loss_mask, np.float32)
    assert np.array_equal(terms.count, due)
    assert not np.asarray(terms.bound)[due == 0].any()


def test_nelbo_given_a_prompt_is_llada(data, monkeypatch, tmp_path):
    found = []
    for objective in (Nelbo(), LLaDA()):
        model = Model.on(tiny.experiment(tmp_path, data=data, objective=objective), data.load())
        found.append(asked(model, monkeypatch)[1].bound)
    assert np.array_equal(*found) and float(found[0].sum()) > 0


def test_twins_mask_complementarily(data, monkeypatch, tmp_path):
    case = CASES["complementary"]
    model = Model.on(tiny.experiment(tmp_path, data=data, **case), data.load())
    inputs, terms = asked(model, monkeypatch, "loss")
    one, two = (np.asarray(inputs.tokens == model.vocab.mask_id)[i::2] for i in (0, 1))
    scored = np.asarray(batch().loss_mask)
    assert (one[scored] ^ two[scored]).all()
    assert np.array_equal(np.asarray(terms.scored)[scored], np.ones(scored.sum()))
    t = np.asarray(inputs.t)[:, 0]
    assert t[0::2] + t[1::2] == pytest.approx(np.ones(B), abs=2e-3)  # t_min


def test_a_causal_network_scores_the_response(data, tmp_path):
    experiment = tiny.experiment(
        tmp_path,
        data=data,
        network=CausalTransformer(width=16, depth=1, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )
    model = Model.on(experiment, data.load())
    terms = model.evaluate(model.init(jax.random.key(0)), jax.random.key(1), batch())
    assert np.array_equal(terms.count, np.asarray(batch().loss_mask, np.float32))


def test_other_rows_have_no_prompts(tmp_path, monkeypatch):
    """Padding that is seen is noised, as published."""
    text = tiny.write_text(tmp_path / "text.txt")
    experiment = tiny.experiment(text, network=DiT(width=16, depth=1, heads=2, cond_dim=8))
    model = Model.on(experiment, experiment.data.load())
    inputs, _ = asked(model, monkeypatch)
    tokens, clean = np.asarray(inputs.tokens), np.asarray(batch().tokens)
    assert (tokens[:, :PROMPT] != clean[:, :PROMPT]).any()
