"""Heads on the output of a network's last block."""

import checkpoint_maker
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_encoders import BERT, MODERN, B, L, V, params_of
from test_names import NETWORKS

import mdlm
from mdlm.interop.importing import import_folder
from mdlm.models import PerToken, Pooled
from mdlm.models.network import bind, denoiser, init
from mdlm.types import DenseLogits, NetInput

D = 32


def filled(head, seed=0):
    """Parameters of a head, all of them random."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), D))
    return jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape), jnp.float32), shapes)


@pytest.fixture
def features():
    return jnp.asarray(np.random.default_rng(2).normal(size=(B, L, D)), jnp.float32)


@pytest.mark.parametrize("network", [BERT, MODERN], ids=["bert", "modern"])
def test_features_come_before_the_transform_of_tokens(network):
    tokens = jax.random.randint(jax.random.key(3), (B, L), 0, V)

    @jax.jit
    def found(params):
        made, deferred = (
            denoiser(network, V, params)(NetInput(tokens=tokens, defer_last_block=deferred))
            for deferred in (False, True)
        )
        transformed = bind(network, V, params).transform(made.features)
        return made.features, deferred.features, made.hidden, transformed

    features, deferred, hidden, transformed = found(params_of(network))
    np.testing.assert_allclose(transformed, hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(deferred, features, rtol=1e-4, atol=1e-4)
    assert np.abs(features - hidden).max() > 0.1


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_every_network_has_features_of_its_width(network):
    tokens = jnp.zeros((1, 8), jnp.int32)
    condition = (lambda t: t) if getattr(network, "cond_dim", 0) else None

    def features(key):
        denoise = denoiser(network, V, init(network, key, V), condition=condition)
        return denoise(NetInput(tokens=tokens, t=jnp.ones((1, 1)), clean=tokens)).features

    shape = jax.eval_shape(features, jax.random.key(0)).shape
    assert shape == (1, 8, network.features_width) and network.features_width == 32


def test_a_pooled_head_reads_the_first_token(features):
    head = Pooled(outputs=3)
    params = filled(head)
    found = head(params, features)
    h = np.asarray(features, np.float64)[:, 0]
    layer = lambda x, part: x @ np.float64(part["kernel"]) + np.float64(part["bias"])
    due = layer(np.tanh(layer(h, params["pooler"])), params["out"])
    assert found.shape == (B, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-4)


def test_a_head_of_tokens_reads_each_by_itself(features):
    head = PerToken(outputs=2)
    params = filled(head)
    due = np.asarray(features) @ np.asarray(params["out"]["kernel"])
    due += np.broadcast_to(params["out"]["bias"], due.shape)
    np.testing.assert_allclose(head(params, features), due, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [Pooled(outputs=3, dropout=0.5), PerToken(outputs=3, dropout=0.5)])
def test_dropout_needs_a_key(head, features):
    params, key = filled(head), jax.random.key
    certain, dropped = head(params, features), head(params, features, key=key(7))
    np.testing.assert_array_equal(head(params, features), certain)
    assert np.abs(dropped - certain).max() > 0.1
    np.testing.assert_array_equal(head(params, features, key=key(7)), dropped)


def test_a_fresh_head_has_small_kernels_and_no_bias():
    params = Pooled(outputs=64).init(jax.random.key(0), 128)
    for layer in params.values():
        assert np.std(layer["kernel"]) == pytest.approx(0.02, rel=0.05)
        assert not layer["bias"].any()
    assert np.abs(params["pooler"]["kernel"][:, :64] - params["out"]["kernel"]).max() > 0.01


def test_what_has_no_features_is_refused():
    head = PerToken(outputs=1)
    with pytest.raises(ValueError, match="a head reads the output of whole rows"):
        head.bound(filled(head))(DenseLogits(jnp.zeros((1, 2, 3))))
    for wrong in (dict(outputs=0), dict(outputs=1, dropout=1.0)):
        with pytest.raises(ValueError, match=r"outputs=0|dropout=1.0"):
            Pooled(**wrong)


def test_the_logits_of_a_classifier_of_transformers(tmp_path):
    """Of the same weights: those of the encoder by way of a masked language model's folder."""
    transformers, torch = (pytest.importorskip(name) for name in ("transformers", "torch"))
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=20, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    whole = transformers.BertForMaskedLM(config)
    encoder = {n: v for n, v in model.bert.state_dict().items() if not n.startswith("pooler")}
    whole.bert.load_state_dict(encoder)
    whole.save_pretrained(tmp_path / "source")
    tokenizer = checkpoint_maker.tokenizer(64, **checkpoint_maker.ENCODER)
    tokenizer.save(str(tmp_path / "source" / "tokenizer.json"))
    import_folder(tmp_path / "source", tmp_path / "run", overrides=[])
    run = mdlm.load(tmp_path / "run")

    layer = lambda part: {
        "kernel": jnp.asarray(part.weight.detach().numpy().T),
        "bias": jnp.asarray(part.bias.detach().numpy()),
    }
    head = Pooled(outputs=3)
    read = head.bound({"pooler": layer(model.bert.pooler.dense), "out": layer(model.classifier)})
    denoise = denoiser(run.experiment.network, run.model.columns, run.params["network"])
    random = np.random.default_rng(0)
    tokens, types = random.integers(5, 64, (4, 12)), random.integers(0, 2, (4, 12))
    is_valid = np.arange(12) < np.array([12, 9, 5, 1])[:, None]
    inputs = NetInput(
        tokens=jnp.asarray(tokens), token_types=jnp.asarray(types), is_valid=jnp.asarray(is_valid)
    )
    with torch.no_grad():
        due = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(is_valid).long(),
            token_type_ids=torch.tensor(types),
        ).logits.numpy()
    ours = jax.jit(lambda inputs: read(denoise(inputs)))(inputs)
    np.testing.assert_allclose(ours, due, rtol=1e-4, atol=1e-4)
    assert np.ptp(due) > 0.5
