"""A streamed text is the text of `generate`, given out while it is written."""

import pytest
import tiny

import mdlm
from mdlm.data.tokens.chat import Chat
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.models import BlockDiT, CausalTransformer
from mdlm.objectives import Autoregressive, BlockNelbo
from mdlm.samplers import (
    BlockByBlock,
    FirstHitting,
    LeftToRight,
    Parallel,
    ParallelBlocks,
    Remask,
)

HELLO = [{"role": "user", "content": "hello"}]
NETWORKS = {
    "causal": dict(
        network=CausalTransformer(width=32, depth=2, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    ),
    "blocks": dict(
        network=BlockDiT(width=32, depth=2, heads=2, cond_dim=16, block_size=8),
        objective=BlockNelbo(block_size=8),
        sampler=BlockByBlock(block_size=8, steps=8),
    ),
    "windows": dict(sampler=Remask(steps=8)),
}
SAMPLERS = {
    "causal": [LeftToRight(temperature=0.7)],
    "blocks": [BlockByBlock(block_size=8, steps=8), ParallelBlocks(block_size=8)],
    "windows": [Remask(steps=8), Parallel(block_size=8), FirstHitting(per_call=2)],
}


@pytest.fixture(scope="module", params=NETWORKS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    text = tiny.write_text(folder / "text.txt")
    values = {"train": Training(steps=1, batch_size=8), **NETWORKS[request.param]}
    mdlm.train(tiny.experiment(text, **values), folder / "run")
    opened = mdlm.load(folder / "run")
    opened.kind = request.param
    return opened


def test_pieces_are_the_text_of_generate(run):
    for sampler in SAMPLERS[run.kind]:
        for prompt, length in (("the quick", 70), ("", 20), ("the quick brown", 15)):
            whole = run.generate(prompt, length=length, seed=4, sampler=sampler)
            stream = run.stream(prompt, length=length, seed=4, sampler=sampler)
            pieces = list(stream)
            assert "".join(pieces) == whole.texts[0].text, sampler
            assert stream.generation.texts == whole.texts
            assert stream.generation.new_tokens == whole.new_tokens
            # A stream takes no steps for what lies past the end of the text.
            assert (whole.new_tokens > 0) <= stream.generation.nfe <= whole.nfe
            assert stream.generation.windows == whole.windows
            shown = run.stream(prompt, length=length, seed=4, sampler=sampler).shown()
            assert "".join(shown) == whole.texts[0].shown


def test_text_comes_while_it_is_written(run):
    """Before each piece the network was called, but not so often as for the whole."""
    for sampler in SAMPLERS[run.kind]:
        stream = run.stream("the ", length=32, seed=1, sampler=sampler)
        calls = []
        for piece in stream:
            assert piece
            calls.append(stream._nfe)
        assert calls == sorted(calls)
        early = [nfe for nfe in calls if 0 < nfe < stream.generation.nfe]
        if isinstance(sampler, Remask):
            assert not early  # what it wrote may change until the window is done
        else:
            assert len(early) >= 2, (sampler, calls)


def test_a_stream_ends_where_the_text_does(run):
    whole = run.generate("ab", length=60, seed=2)
    tokens = whole.texts[0].tokens
    stop = tokens[20]
    ended = run.generator().continue_tokens([[97, 98]], 60, seed=2, stop_at=(stop,))
    stream = run.generator().stream([97, 98], 60, seed=2, stop_at=(stop,))
    assert "".join(stream) == ended.texts[0].text
    assert stream.generation.texts == ended.texts and len(ended.texts[0].tokens) <= 21
    assert stream.generation.nfe <= ended.nfe


def test_an_answer_is_streamed(run):
    run.tokenizer.chat = Chat(template="{{ messages[-1].content }}:")
    whole = run.chat(HELLO, length=9, seed=3)
    stream = run.stream(HELLO, length=9, seed=3)
    assert "".join(stream) == whole.texts[0].text and stream.generation.texts == whole.texts
    with pytest.raises(InputError, match="stride, stop_at_eos: not for conversations"):
        run.stream(HELLO, stride=3)
    with pytest.raises(InputError, match="length=99: must be from 1 to"):
        run.stream(HELLO, length=99)


def test_bad_values_are_refused_at_once(run):
    with pytest.raises(InputError, match="length=0: must be at least 1"):
        run.stream("a", length=0)
    with pytest.raises(InputError, match="more than the 10"):
        run.stream("a" * 11, length=10)
    with pytest.raises(InputError, match="stride=40: must be in"):
        run.stream("a", length=10, stride=40)


def test_prompts_of_different_lengths_in_one_call(run):
    """Each text is that of its prompt alone."""
    prompts = ["the quick brown fox", "a", ""]
    together = run.generate(prompts, num=2, length=44, seed=6)
    assert len(together.texts) == 6
    for number, prompt in enumerate(prompts):
        alone = run.generate(prompt, num=2, length=44, seed=6, first=2 * number)
        assert together.texts[2 * number : 2 * number + 2] == alone.texts


def test_conversations_of_different_lengths_in_one_call(run):
    """Each answer is that to its conversation alone: the network does not see what fills a row."""
    run.tokenizer.chat = Chat(template="{{ messages[-1].content }}:")
    asked = [[{"role": "user", "content": text}] for text in ("hello", "a", "what is it")]
    for trace in (False, True):
        together = run.chat(asked, num=2, length=9, seed=3, trace=trace)
        assert len(together.texts) == 6 and together.new_tokens == 54
        for number, messages in enumerate(asked):
            alone = run.chat(messages, num=2, length=9, seed=3, first=2 * number)
            assert together.texts[2 * number : 2 * number + 2] == alone.texts
