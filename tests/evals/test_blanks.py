"""Blanks in rows of distributions that are known exactly, and of runs."""

import math
from functools import cached_property, partial

import jax
import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.data import Bytes, Pad, TextData, TextFiles, Wrap
from mdlm.data.mixture import other_data
from mdlm.data.pairs import Encoded
from mdlm.data.rows.base import Rows
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals.blanks import AnyContext, Blanks, blanks_in, evaluate, table
from mdlm.evals.oracles import Enumerated
from mdlm.evals.orders import ChainRule
from mdlm.keys import by_row, of_seed
from mdlm.models import CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.parallel.mesh import MeshShape
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers import Ancestral, LeftToRight
from mdlm.samplers.loop import generate
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Vocab

LENGTH, SYMBOLS = 4, 3
VOCAB = Vocab(size=SYMBOLS + 1, mask_id=SYMBOLS)


class Cycle(Enumerated):
    """Each token follows from any other: x_i = x_0 + i modulo the number of symbols."""

    @cached_property
    def p(self):
        after = (self.sequences - np.arange(self.length)) % self.symbols
        p = (after == after[:, :1]).all(axis=1) + 1e-12  # a little, for the posterior elsewhere
        return p / p.sum()


class Level(Enumerated):
    """All sequences are equally likely."""

    @cached_property
    def p(self):
        return np.full(len(self.sequences), 1 / len(self.sequences))


LAW = Enumerated(length=LENGTH, symbols=SYMBOLS, seed=3, concentration=2.0)


def diffusion_of(law):
    return Diffusion(
        process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
        parameterization=Subs().with_vocab(VOCAB),
        denoise=law.denoise,
    )


def cells_of(law, rows, how, sampler):
    mesh = MeshShape().build(jax.devices()[:1])
    chain = ChainRule(lambda _: diffusion_of(law), {}, mesh=mesh, batch_size=256)

    drawn = jax.jit(partial(generate, sampler=sampler, diffusion=diffusion_of(law)))
    keys = by_row(of_seed(7), jax.numpy.arange(rows))

    def fill(rows, blank):
        hidden = np.where(blank, 0, rows.tokens).astype(np.int32)
        return np.asarray(drawn(keys, hidden, ~blank).tokens)

    tokens = law.draw(rows, seed=1).astype(np.int32)
    every = np.ones(tokens.shape, bool)
    held = Rows(tokens=tokens, loss_mask=every, is_valid=every)
    named = dict(protocol="the law", filled_by="the oracle")
    return tokens, evaluate(held, every, AnyContext(chain, how), fill, how, **named)


def conditional(law, x, blank, given):
    fits = lambda which: law.p[(law.sequences[:, which] == x[which]).all(axis=1)].sum()
    return -math.log(fits(blank | given) / fits(given))


def test_the_true_posterior_gives_the_enumerated_likelihood():
    """Row by row, hence its mean and spread; and no order differs from another."""
    how = Blanks(lengths=(1, 2, 3), num=40)
    rows, cells = cells_of(LAW, 40, how, Ancestral(steps=8))
    assert [(cell.tokens, cell.at) for cell in cells[:4]] == [
        (1, "begin"),
        (1, "middle"),
        (1, "end"),
        (2, "begin"),
    ]
    for cell in cells:
        start = {"begin": 0, "middle": (LENGTH - cell.tokens) // 2, "end": LENGTH - cell.tokens}
        at = np.arange(LENGTH)
        blank = (at >= start[cell.at]) & (at < start[cell.at] + cell.tokens)
        nats = {}
        for context, given in {"both": ~blank, "left": at < start[cell.at], "none": at < 0}.items():
            nats[context] = np.array([conditional(LAW, x, blank, given) for x in rows])
            nats[context] /= cell.tokens
            found = cell.nats[context]
            assert found.value == pytest.approx(nats[context].mean(), abs=1e-5)
            assert found.stderr_rows == pytest.approx(nats[context].std(ddof=1) / 40**0.5, abs=1e-5)
            assert found.stderr == pytest.approx(0, abs=1e-5) and found.n == 40 * cell.tokens
        for context, gain in cell.gains.items():
            more = nats[context] - nats["both"]
            assert gain.value == pytest.approx(more.mean(), abs=1e-5)
            assert gain.stderr_rows == pytest.approx(more.std(ddof=1) / 40**0.5, abs=1e-5)
        assert cell.kept.value == 1


def test_a_deterministic_law_is_filled_exactly():
    law = Cycle(length=LENGTH, symbols=SYMBOLS)
    _, cells = cells_of(law, 32, Blanks(lengths=(1, 3)), Ancestral(steps=8, temperature=0.0))
    for cell in cells:
        assert (cell.exact.value, cell.exact.stderr_rows) == (1, 0)
        assert cell.accuracy.value == cell.kept.value == 1
        assert cell.nats["both"].value == pytest.approx(0, abs=1e-5)
        # The first token is one of three; the others follow from it.
        assert cell.gains["none"].value == pytest.approx(math.log(3) / cell.tokens, abs=1e-5)
        is_first = cell.at == "begin" or (cell.tokens, cell.at) == (3, "middle")
        expected = math.log(3) / cell.tokens if is_first else 0.0
        assert cell.gains["left"].value == pytest.approx(expected, abs=1e-5)


def test_independent_tokens_are_filled_by_chance():
    """One in V^k; the text around a blank is worth nothing."""
    law = Level(length=LENGTH, symbols=SYMBOLS)
    _, cells = cells_of(law, 3000, Blanks(lengths=(1, 2), at=("middle",)), Ancestral(steps=8))
    for cell in cells:
        chance = 3.0**-cell.tokens
        assert cell.exact.value == pytest.approx(chance, abs=4 * cell.exact.stderr_rows)
        wide = math.sqrt(chance * (1 - chance) / 3000)
        assert cell.exact.stderr_rows == pytest.approx(wide, rel=0.1)
        assert cell.accuracy.value == pytest.approx(1 / 3, abs=4 * cell.accuracy.stderr_rows)
        assert cell.nats["both"].value == pytest.approx(math.log(3), abs=1e-5)
        assert cell.gains["none"].value == pytest.approx(0, abs=1e-5)


def test_a_single_order_of_several_tokens_has_no_known_noise():
    how = Blanks(lengths=(1, 2), at=("end",), orders=1)
    _, (one, two) = cells_of(LAW, 8, how, Ancestral(steps=4))
    assert one.nats["both"].stderr == 0 and two.nats["both"].stderr is None
    assert "in a random order" in two.nats["both"].protocol


def test_blanks_lie_in_what_is_allowed():
    allowed = np.array([[False, True, True, True, True, False], [True] * 6])
    for at, expected in {"begin": "-11---", "middle": "--11--", "end": "---11-"}.items():
        first, second = blanks_in(allowed, 2, at)
        assert "".join("-1"[int(i)] for i in first) == expected
        assert second.sum() == 2


def new(folder, packing, **changes):
    text = tiny.write_text(folder / "text.txt")
    source = TextFiles(train=str(text), separator="\n")  # a document is a line
    data = TextData(source=source, tokenizer=Bytes(), packing=packing)
    return made(folder / "run", tiny.experiment(text, data=data, **changes))


def test_a_run(tmp_path):
    """Rows with a frame and padding: neither is ever blank, and nothing given is changed."""
    run = new(tmp_path, Pad(length=64))
    seen = []
    cells = run.blanks(
        Blanks(lengths=(1, 5), num=6, batch_size=4),
        report=lambda done, of: seen.append((done, of)),
    )
    assert seen[-1] == (24, 24) and len(cells) == 6
    for cell in cells:
        assert cell.kept.value == 1 and 0 <= cell.exact.value <= cell.accuracy.value <= 1
        assert 3 < cell.nats["both"].value < 9  # random parameters, 256 bytes
        assert cell.exact.protocol.startswith("valid, 6 of")
        assert cell.exact.protocol.endswith("filled by Ancestral(temperature=0.0, steps=16)")
    text = table(cells)
    assert max(map(len, text.splitlines())) <= 80 and "unchanged in 100.0%" in text
    again = run.blanks(Blanks(lengths=(1, 5), num=6))
    for one, two in zip(cells, again, strict=True):
        assert one.nats["left"].value == pytest.approx(two.nats["left"].value, abs=1e-5)
        assert one.accuracy == two.accuracy
    with pytest.raises(InputError, match="lengths=63: 0 rows of the split have room"):
        run.blanks(Blanks(lengths=(63,)))


def test_a_causal_run_has_the_left_side_only(tmp_path):
    run = new(
        tmp_path,
        Wrap(length=32, row_specials=False),
        network=CausalTransformer(width=32, depth=2, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )
    [cell] = run.blanks(Blanks(lengths=(3,), at=("begin",), num=5))
    assert set(cell.nats) == {"left"} and cell.gains == {} and cell.kept.value == 1
    assert "log p(response | prompt), exact, token by token" in cell.nats["left"].protocol
    # Other text is named.
    file = str(tiny.write_text(tmp_path / "other.txt", seed=1))
    run.dataset = other_data(run.experiment.data, (file,), "valid").load(run.folder.data)
    [cell] = run.blanks(Blanks(lengths=(3,), at=("begin",), num=5))
    assert cell.exact.protocol.startswith(f"text files {file}, valid, 5 of")
    order = np.random.default_rng(0).permutation(len(run.dataset.valid.rows))[:5]
    rows = run.dataset.valid.rows.take(order).tokens
    bos = run.tokenizer.vocab.bos_id
    pairs = [Encoded(prompt=(bos,), response=tuple(x[:3].tolist()), where="") for x in rows]
    expected = -np.mean([one.value for one in run.likelihood()(pairs)]) / 3
    assert cell.nats["left"].value == pytest.approx(expected, rel=1e-5)
    assert max(map(len, table([cell]).splitlines())) <= 80


def test_refusals(tmp_path):
    for settings, message in (
        ({"lengths": (4, 0)}, "lengths=0: must be at least 1"),
        ({"num": 1}, "num=1: must be at least 2"),
        ({"orders": 0}, "orders=0: must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            Blanks(**settings)
    inside = partial(new, tmp_path, Wrap(length=32, segments=True))
    with pytest.raises(InputError, match="attention stays inside documents"):
        inside().blanks()
