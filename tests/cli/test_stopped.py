"""What is said of a run that was stopped."""

import shlex

from mdlm.cli.train import stopped


def test_the_command_can_be_pasted():
    words = ["train", "my file.py", "--out", "runs/$lr", "--process", "Masked(schedule=Cosine())"]
    said, _, again = stopped(7, words).partition("to continue: ")
    assert said == "stopped at step 7, saved; " and shlex.split(again) == ["mdlm", *words]
