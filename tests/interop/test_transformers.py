"""Networks made by `transformers`, in and out: the same logits there, here, and there again."""

import checkpoint_maker
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm
from mdlm.interop.exporting import export
from mdlm.interop.importing import import_folder
from mdlm.models import LinearScaling, Llama3Scaling
from mdlm.models.network import denoiser
from mdlm.types import NetInput

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
CLOSE = dict(rtol=1e-5, atol=1e-4)
SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    max_position_embeddings=48,
    tie_word_embeddings=False,
    bos_token_id=60,
    eos_token_id=61,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=24,
)
CASES = {
    "qwen2": ("Qwen2", {}, None),
    "linear": ("Llama", dict(rope_type="linear", factor=2.5), LinearScaling(factor=2.5)),
    # Its 4 angles turn 3.8, 1.2, 0.4 and 0.1 times over 24 tokens: two lie between the limits.
    "llama3": ("Llama", LLAMA3, Llama3Scaling(factor=4.0, original=24)),
    "default": ("Qwen3", dict(rope_type="default"), None),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_in_and_out(tmp_path, name):
    kind, rope, scaling = CASES[name]
    source, tokens = tmp_path / "source", np.random.default_rng(0).integers(0, 60, (2, 47))
    rope_parameters = {**rope, "rope_theta": 100.0} if rope else None
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, head_dim=8, rope_parameters=rope_parameters
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for value in model.parameters():  # norms and biases would be 1 and 0
        torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(source)
    checkpoint_maker.tokenizer(64, **checkpoint_maker.MASK).save(str(source / "tokenizer.json"))

    import_folder(source, tmp_path / "run", overrides=[])
    run = mdlm.load(tmp_path / "run")
    network = run.experiment.network
    assert network.rotary_scaling == scaling and network.qkv_bias == (kind == "Qwen2")
    denoise = denoiser(network, run.model.columns, run.params["network"])
    ours = jax.jit(lambda tokens: denoise(NetInput(tokens=tokens)).logits())(jnp.asarray(tokens))
    np.testing.assert_allclose(ours[:, 1:], _logits(model, tokens)[:, :-1], **CLOSE)

    export(run, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(model)
    np.testing.assert_array_equal(_logits(again, tokens), _logits(model, tokens))
    import_folder(tmp_path / "out", tmp_path / "again", overrides=[])
    assert mdlm.load(tmp_path / "again").experiment.network == network


def _logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.mark.parametrize("columns", [64, 63], ids=["a column is free", "a column is added"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_causal_network_as_diffusion(tmp_path, columns, tied):
    """A mask with the mean of all embeddings; before anything is trained, and without a view ahead,
    the logits are those of the causal network. What is exported is imported again."""
    sizes = {**SIZES, "vocab_size": columns, "tie_word_embeddings": tied}
    sizes |= {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, head_dim=8)).eval()
    model.save_pretrained(tmp_path / "source")
    checkpoint_maker.tokenizer(63).save(str(tmp_path / "source" / "tokenizer.json"))
    import_folder(tmp_path / "source", tmp_path / "run", overrides=[], to_diffusion=True)
    run = mdlm.load(tmp_path / "run")
    network, mask = run.experiment.network, run.model.vocab.mask_id
    assert (network.attends, network.shift, network.columns, mask) == ("all", True, 64, 63)
    table = np.asarray(run.params["network"]["embed"]["table"])
    np.testing.assert_allclose(table[mask], table[:mask].mean(0), rtol=1e-5, atol=1e-6)
    if not tied:
        kernel = np.asarray(run.params["network"]["head"]["kernel"])
        np.testing.assert_allclose(kernel[:, mask], kernel[:, :mask].mean(1), rtol=1e-5, atol=1e-6)

    tokens = np.random.default_rng(0).integers(0, 60, (2, 47))
    denoise = denoiser(network, run.model.columns, run.params["network"])
    ask = jax.jit(lambda tokens: denoise(NetInput(tokens=tokens, ahead=0)).logits())
    ours = ask(jnp.asarray(tokens))[:, 1:, :63]
    np.testing.assert_allclose(ours, _logits(model, tokens)[:, :-1, :63], **CLOSE)

    export(run, tmp_path / "out")
    import_folder(tmp_path / "out", tmp_path / "again", overrides=[])
    again = mdlm.load(tmp_path / "again")
    assert again.experiment.network == network
    np.testing.assert_array_equal(again.params["network"]["embed"]["table"], table)
