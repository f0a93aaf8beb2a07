"""Seeds: all their bits count, and one that is out of range is refused in one line."""

import jax
import numpy as np
import pytest
import tiny

from mdlm.cli import main as cli
from mdlm.config.overrides import apply
from mdlm.errors import InputError
from mdlm.keys import of_seed


def bits(seed: int) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(of_seed(seed))).tolist())


def test_seeds_below_32_bits_have_the_keys_that_they_had():
    for seed in (0, 1, 7, 2**31, 2**32 - 1):
        assert bits(seed) == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())


def test_all_bits_count():
    seeds = [0, 1, *(2**bit for bit in range(1, 63)), 2**32 + 1, 2**53 + 1, 2**63 - 1]
    assert len({bits(seed) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
def test_others_are_refused_everywhere(seed, tmp_path, capsys):
    with pytest.raises(InputError, match=rf"seed={seed}: must be in \[0, 2\*\*63\)"):
        of_seed(seed)
    experiment = tiny.experiment(tmp_path / "text.txt")
    with pytest.raises(InputError, match="seed"):
        apply(experiment, [("seed", str(seed))])
    tiny.write_text(tmp_path / "text.txt")
    file = tmp_path / "tiny.py"
    file.write_text(tiny.FILE.format(text=str(tmp_path / "text.txt")))
    out = str(tmp_path / "run")
    for words in (
        ["train", str(file), "--out", out, f"--seed={seed}"],
        ["train", str(file), "--out", out, f"--seed={seed}", "--train.steps", "1"],
        ["plan", str(file), "--seed", str(seed), "--topology", "gpu:1xH100"],
        ["sample", out, f"--seed={seed}"],
    ):
        try:
            code = cli.main(words)
        except SystemExit as end:  # from the parser of options
            code = end.code
        assert code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(seed) in said and "2**63" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [2**53 + 1, 2**62 + 1])
def test_a_whole_number_is_read_exactly(number, tmp_path):
    experiment = tiny.experiment(tmp_path / "text.txt")
    for text in (str(number), f"{number}.0", f"{number:_}"):
        assert apply(experiment, [("seed", text)]).seed == number
        if number < 2**31:
            assert apply(experiment, [("train.steps", text)]).train.steps == number
