"""Every value of every JSON file that is read is replaced by hostile ones."""

import json

import pytest
from hostile import JSON, SMALL, changed, dumps, leaves, some

SAMPLE = ["sample", "run", "--steps", "1", "--length", "4"]
EVAL = ["eval", "run", "--passes", "1"]
TRAIN = ["train", "tiny.py", "--out", "run", *SMALL, "--train.steps", "5"]
FORK = ["train", "tiny.py", "--fork", "run", "--out", "fork", *SMALL, "--train.steps", "5"]
STORE = ["train", "tiny.py", "--data.store", "store", "--out", "new", *SMALL]
FILES = {
    "run/config.json": (SAMPLE, TRAIN),
    "run/env.json": (SAMPLE, TRAIN),
    "run/metrics.jsonl": (TRAIN,),
    "run/evaluations.jsonl": (EVAL,),
    "run/data/texts.json": (TRAIN,),
    "run/data/special_tokens.json": (SAMPLE,),
    "run/data/tokenizer.json": (SAMPLE,),
    "run/checkpoints/4/data/metadata": (TRAIN, FORK),
    "run/checkpoints/4/metrics/metrics": (TRAIN, FORK),
    "run/checkpoints/4/_CHECKPOINT_METADATA": (SAMPLE,),
    "run/checkpoints/4/state/_METADATA": (SAMPLE,),
    "store/manifest.json": (["prepare", "tiny.py", "--out", "store", "--workers", "1"], STORE),
    "store/special_tokens.json": (STORE,),
    "made.trace": (["view", "made.trace"], ["view", "made.trace", "--html", "x.html"]),
}
"""The files, and the commands that read each."""


PARTS, KINDS = 6, 2
"""Parts in which the places of a file are tried, and values tried at each place."""
MOST = 36
"""Places of a file that are tried: of the lists of a checkpoint's arrays, not all."""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", FILES)
def test_files(attempt, folder, name, part):
    """Each place in the file, with some of the values, others at the next place."""
    path, failed = folder / "work" / name, []
    whole = read(path)
    places = list(leaves(whole))
    places = places[:: -(-len(places) // MOST)]
    for number, at in list(enumerate(places))[part::PARTS]:
        for kind in some(JSON, number, KINDS):
            for words in FILES[name]:
                path.write_text(dumps(changed(whole, at, JSON[kind])) + "\n", encoding="utf-8")
                try:
                    attempt(*words)
                except AssertionError as error:  # all of them are shown
                    failed.append(f"{kind} at {at}, {words[0]}: {str(error)[-900:]}")
    assert not failed, "\n".join(failed)


def read(path):
    """The JSON value of a file, or of the last of its lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.strip().splitlines()[-1] if path.suffix == ".jsonl" else text)
