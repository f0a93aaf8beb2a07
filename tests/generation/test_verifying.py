"""A masked run drafts and an autoregressive run verifies: from Python and on the command line."""

import dataclasses
import json

import pytest
import tiny

import mdlm
from mdlm.cli.main import main
from mdlm.data import BPE
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.models import CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.samplers import Ancestral, Dual, LeftToRight, Parallel, Verified

CAUSAL = dict(
    network=CausalTransformer(width=32, depth=2, heads=2),
    objective=Autoregressive(),
    sampler=LeftToRight(),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    text = tiny.write_text(folder / "text.txt")
    train = Training(steps=2, batch_size=8)
    mdlm.train(tiny.experiment(text, train=train), folder / "drafts")
    mdlm.train(tiny.experiment(text, train=train, **CAUSAL), folder / "verifier")
    return mdlm.load(folder / "drafts"), mdlm.load(folder / "verifier"), folder, text


def test_greedy_texts_are_those_of_the_verifier(runs):
    drafts, verifier, *_ = runs
    how = dict(length=24, sampler=Verified(temperature=0.0, ahead=8))
    out = drafts.generate("the quick", verifier=verifier, **how)
    due = verifier.generate("the quick", length=24, sampler=LeftToRight(temperature=0.0))
    assert out.texts[0].text == due.texts[0].text
    assert "accepted with each verification" in str(out)
    stream = drafts.stream("the quick", verifier=verifier, **how)
    assert "".join(stream) == out.texts[0].text


def test_the_command_line_takes_a_verifier_and_says_what_is_approximate(runs, capsys):
    *_, folder, _ = runs
    sample = ["sample", str(folder / "drafts"), "--length", "16"]
    assert main([*sample, "--verifier", str(folder / "verifier"), "--json"]) == 0
    assert "tokens accepted" in json.loads(capsys.readouterr().out)["note"]
    cached = "Parallel(block_size=8, cache=Dual())"
    assert main([*sample, "--sampler", cached]) == 0
    assert "approximate, by cache=Dual(...)" in capsys.readouterr().err
    assert main(["samplers"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Approximate. Reads the block" in said and "The exact cache of samplers" in said


def test_what_cannot_verify_is_refused(runs):
    drafts, verifier, folder, text = runs
    assert drafts.generator(Parallel(block_size=8, cache=Dual())).sampler.cache == Dual()
    for sampler, other, reason in (
        (Verified(), None, "needs a verifier"),
        (Ancestral(), verifier, "takes none"),
        (Verified(), drafts, "not a causal one"),
    ):
        with pytest.raises(InputError, match=reason):
            drafts.generator(sampler, verifier=other)
    short = dataclasses.replace(verifier.experiment.data.packing, length=16)
    data = dataclasses.replace(verifier.experiment.data, packing=short)
    words = dataclasses.replace(data, packing=short, tokenizer=BPE(vocab_size=300))
    for name, changed, reason in (
        ("short", data, "its rows have 16 tokens"),
        ("words", words, "another tokenizer"),
    ):
        train = Training(steps=1, batch_size=8)
        mdlm.train(tiny.experiment(text, train=train, **CAUSAL, data=changed), folder / name)
        with pytest.raises(InputError, match=reason):
            drafts.generator(Verified(), verifier=mdlm.load(folder / name))
