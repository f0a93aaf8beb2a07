"""What is checked and made on the host for texts of the current parameters."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from mdlm.config.component_text import from_text
from mdlm.data import Bytes, PairData, Preferences, Responses
from mdlm.data.rows.shuffle import Shuffled
from mdlm.errors import InputError
from mdlm.experiment import Training, load_file
from mdlm.experiment.loading import function_named
from mdlm.objectives import GRPO, Nelbo, Objective, Preference, Rollouts, WeightedPolicy
from mdlm.train.rollouts import Repeated, check, judged, until_end

TEXTS = ["one", "two\nlines", "three " * 40]


def shorter(prompts, texts):
    return [-len(text) for text in texts]


def test_a_reward_is_a_number_for_each_text():
    found = judged(shorter, [""] * 3, TEXTS, "step 1")
    assert found is not None and found.tolist() == [-3, -9, -240]
    assert (
        judged(lambda prompts, texts: np.array([1.0, 2, 3]).tolist(), [""] * 3, TEXTS, "")
        is not None
    )


def broken(prompts, texts):
    raise KeyError("nothing\nhere")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (broken, "step 7: reward broken failed (KeyError: 'nothing\\nhere') for the text 'one'"),
        (lambda p, t: [0, float("nan"), 1], "gave nan, no finite number, for the text 'two\\nlin"),
        (lambda p, t: [0, 1, float("inf")], "gave inf, no finite number, for the text 'three thr"),
        (lambda p, t: [0, "much", 1], "gave 'much', no finite number, for the text 'two"),
        (lambda p, t: [1, 2], "(ValueError: 2 numbers for 3 texts) for the text 'one'"),
        (lambda p, t: None, "failed (TypeError: 'NoneType' object is not iterable)"),
    ],
)
def test_a_reward_that_fails_is_named_with_the_text(reward, message, caplog):
    with caplog.at_level(logging.WARNING):
        assert judged(reward, [""] * 3, TEXTS, "step 7") is None
    [record] = caplog.records
    said = record.getMessage()
    assert message in said and said.endswith("the step is skipped") and "\n" not in said
    assert len(said) < 200


def test_a_response_ends_with_its_first_end():
    tokens = np.array([[9, 1, 2, 9, 3, 9], [1, 1, 9, 9, 2, 2], [1, 2, 3, 4, 5, 6]])
    is_prompt = np.array([[True, True, False, False, False, False], [False] * 6, [True] * 6])
    assert until_end(tokens, is_prompt, {9}).tolist() == [
        [False, False, True, True, False, False],
        [True, True, True, False, False, False],
        [False] * 6,
    ]
    assert (until_end(tokens, is_prompt, set()) == ~is_prompt).all()


def test_prompts_are_repeated_in_groups_and_for_several_updates():
    order = Shuffled(10, seed=2)
    found = Repeated(order, Rollouts(reward="x", group=3, updates=2), 2).at(np.arange(24))
    first = order.at(np.arange(4))
    batches = [[first[0]] * 3 + [first[1]] * 3, [first[2]] * 3 + [first[3]] * 3]
    assert found.reshape(4, 6).tolist() == [batches[0], batches[0], batches[1], batches[1]]


@pytest.mark.parametrize(
    ("train", "updates", "message"),
    [
        (Training(batch_size=12), 1, "train.batch_size=12: must be a multiple of the 8 texts"),
        (Training(batch_size=16, spike=1.0), 1, "train.spike"),
        (Training(batch_size=16, log_every=5), 2, "train.log_every=5: must be a multiple of"),
        (Training(batch_size=16, steps=999), 2, "train.steps=999"),
        (Training(batch_size=16, eval_every=3), 2, "train.eval_every=3"),
        (Training(batch_size=16, checkpoint_every=3), 2, "train.checkpoint_every=3"),
    ],
)
def test_what_cannot_be_resumed_is_refused(train, updates, message):
    asked = Rollouts(reward="any", updates=updates)
    made = tiny.experiment(Path("none.txt"), objective=GRPO(rollouts=asked, kl=0.0), train=train)
    with pytest.raises(InputError, match=message) as refused:
        check(made)
    assert "\n" not in str(refused.value)
    check(replace(made, train=Training(batch_size=16, steps=4, log_every=2)))


def test_functions_are_found_by_name():
    assert function_named("test_rollouts:shorter") is shorter
    for name, message in (
        ("test_rollouts:longer", "no such function in the module test_rollouts"),
        ("test_rollouts:TEXTS", "no such function"),
        ("no_such_module:reward", "its module cannot be imported .ModuleNotFoundError"),
        ("no_such_function", "no such function in the experiment file"),
    ):
        with pytest.raises(InputError, match=message):
            function_named(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollouts(reward="a b"), "reward='a b': must be module:function"),
        (lambda: Rollouts(reward="file.py:"), "must be module:function"),
        (lambda: Rollouts(reward="a:b", group=1), "group=1: must be at least 2"),
        (lambda: Rollouts(reward="a:b", updates=0), "updates=0"),
        (lambda: from_text("GRPO()", Objective), "rollouts"),
        (lambda: GRPO(rollouts=Rollouts(reward="a"), clip=1.5), "clip=1.5"),
        (lambda: GRPO(rollouts=Rollouts(reward="a"), kl=-1.0), "kl=-1"),
        (lambda: GRPO(rollouts=Rollouts(reward="a"), prompt_mask=1.0), "prompt_mask=1"),
        (lambda: WeightedPolicy(rollouts=Rollouts(reward="a"), psi=0.0), "psi=0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_fine_tuning_goes_on_from_preferences_and_rewards():
    """The shipped experiment, from a run of each kind."""
    sft = Path(__file__).parents[2] / "experiments" / "sft.py"
    asked = Rollouts(reward="any")
    plain = tiny.experiment(Path("none.txt"))
    preferred = replace(
        plain,
        data=PairData(
            source=Preferences(train="a.jsonl"), tokenizer=Bytes(), packing=Responses(length=8)
        ),
        objective=Preference(bound=Nelbo(t_min=0.1)),
    )
    for base, due in (
        (plain, plain.objective),
        (preferred, Nelbo(t_min=0.1)),
        (replace(plain, objective=GRPO(rollouts=asked)), Nelbo()),
        (replace(plain, objective=WeightedPolicy(rollouts=asked)), Nelbo()),
    ):
        assert load_file(sft, base=lambda base=base: base).objective == due
