"""Composition: what is refused and why, what identifies a run, what a file may do wrong."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import tiny
from shipped_files import FILES, FOLLOWING, base_of, bert, causal

from mdlm.config.overrides import names
from mdlm.config.records import differences
from mdlm.data.glue import GlueTask
from mdlm.errors import InputError
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.identity import fingerprint, identity
from mdlm.experiment.loading import load_changed, load_file
from mdlm.models import PerToken, Pooled, opened
from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.labels import Classification, Regression
from mdlm.objectives.nelbo import Nelbo
from mdlm.parallel.mesh import MeshShape, check_batch
from mdlm.processes.masked import Masked
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.md4 import Polynomial

EXPERIMENTS = [path for path in FILES if path not in FOLLOWING]


@pytest.fixture
def experiment():
    return tiny.experiment(Path("text.txt"))


class NoInverse(Schedule):
    def alpha(self, t, x_0=None):
        return 1 - t


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"network": CausalTransformer(width=32, depth=1, heads=2)},
            r"objective=Nelbo\(\): needs a network that attends to all tokens",
        ),
        (
            {"objective": Autoregressive()},
            r"objective=Autoregressive\(\): needs a network that attends to the tokens before",
        ),
        (
            {"sampler": LeftToRight()},
            r"sampler=LeftToRight\(\): needs a network that attends to the tokens before",
        ),
        (
            {"evaluation": Perplexity(objective=Autoregressive())},
            r"evaluation.objective=Autoregressive\(\): needs a network",
        ),
        (
            {
                "network": CausalTransformer(width=32, depth=1, heads=2),
                "objective": Autoregressive(),
                "sampler": LeftToRight(),
                "time_condition": "sigma",
            },
            "no meaning for a causal network",
        ),
        (
            {"objective": Nelbo(importance=True), "process": Masked(schedule=NoInverse())},
            "NoInverse has none",
        ),
    ],
)
def test_nonsense_is_refused_with_the_reason(experiment, changes, reason):
    with pytest.raises(InputError, match=reason):
        replace(experiment, **changes)


BLOCKS = {
    "network": BlockDiT(width=32, depth=1, heads=2, block_size=4),
    "objective": BlockNelbo(block_size=4),
    "sampler": BlockByBlock(block_size=4),
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"objective": Nelbo()},
            "Nelbo..: needs a network that attends to all tokens of the noised row;",
        ),
        (
            {"network": DiT(width=32, depth=1, heads=2)},
            "needs a network that attends to a noised block",
        ),
        (
            {"sampler": BlockByBlock(block_size=8)},
            "same size: network.block_size=4, objective.block_size=4, sampler.block_size=8",
        ),
        (
            {"evaluation": Perplexity(objective=BlockNelbo(block_size=2))},
            "evaluation.objective.block_size=2",
        ),
        (
            {
                "network": replace(BLOCKS["network"], block_size=5),
                "objective": BlockNelbo(block_size=5),
                "sampler": BlockByBlock(block_size=5),
            },
            "network.block_size=5 does not divide data.packing.length=",
        ),
        (
            {
                "objective": BlockNelbo(block_size=4, high=0.8),
                "process": Masked(schedule=Polynomial(power=2.0)),
            },
            "masking rates, which are the times of LogLinear",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused(experiment, changes, reason):
    blocks = replace(experiment, **BLOCKS)
    with pytest.raises(InputError, match=reason):
        replace(blocks, **changes)


def test_identity_leaves_out_where_how_long_and_how_often(experiment):
    same = replace(
        experiment,
        name="other",
        mesh=MeshShape(data=2),
        data=replace(experiment.data, store="elsewhere"),
        train=replace(experiment.train, steps=99, eval_every=3),
    )
    assert fingerprint(same) == fingerprint(experiment)
    other = replace(experiment, process=Masked(schedule=LogLinear(eps=0.0)))
    assert fingerprint(other) != fingerprint(experiment)
    found = differences(identity(experiment), identity(other))
    assert found == ["process.schedule.eps: 0.001 there, 0.0 here"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_files_load(path):
    experiment = load_file(path)
    assert experiment.name == path.stem
    doc = path.read_text().split('"""')[1]
    assert "mdlm train experiments/" in doc and "Data:" in doc


@pytest.mark.parametrize("path", FOLLOWING, ids=lambda path: path.stem)
def test_experiments_follow_from_a_run(path):
    base = base_of(path)
    made = load_file(path, base=lambda: base)
    assert made.name.startswith(path.stem) and made.data.tokenizer == base.data.tokenizer
    due = base.network if base.network.attends == "all" else opened(base.network)
    assert replace(made.network, dropout=0.0) == due
    assert f"mdlm train {path.stem} --init-from" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", ["open", "windows", "blocks", "both"])
def test_recipes_from_autoregressive_to_diffusion(recipe):
    base = causal()
    made = load_changed("ar_to_diffusion", [("recipe", recipe)], base=lambda: base)
    assert made.stages == () or recipe in ("windows", "blocks")
    assert (made.network.attends == "blocks") == (recipe == "blocks") and made.network.shift
    moved = [("recipe", recipe), ("shift", "False")]
    if recipe == "both":  # next tokens are predicted where a causal network does
        with pytest.raises(InputError, match="network.shift=True"):
            load_changed("ar_to_diffusion", moved, base=lambda: base)
    else:
        made = load_changed("ar_to_diffusion", moved, base=lambda: base)
        networks = [made.network, *(stage.network for stage in made.stages if stage.network)]
        assert not any(network.shift for network in networks)


def test_every_task_of_glue_is_an_experiment():
    base = bert()
    outputs = {}
    for task in get_args(GlueTask):
        made = load_changed("glue", [("task", task)], base=lambda: base)
        outputs[task] = made.head.outputs
        # Three epochs, in batches of 16.
        assert made.train.steps == 3 * math.ceil(made.data.source.form.rows / 16)
        is_number = isinstance(made.objective, Regression)
        assert is_number == (task == "stsb") and made.name == f"glue_{task}"
    assert outputs == {task: 2 for task in outputs} | {"mnli": 3, "stsb": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            dict(head=None),
            r"objective=Classification\(\): needs a head of rows, such as head=Pooled",
        ),
        (dict(head=PerToken(outputs=2)), r"needs a head of rows"),
        (dict(head=Pooled(outputs=3)), r"head.outputs=3: the data have 2 classes for each row"),
        (
            dict(objective=Nelbo()),
            r"objective=Nelbo\(\): predicts tokens, and the data have classes",
        ),
        (dict(objective=Regression()), r"predicts numbers, and the data have classes to predict"),
        (
            dict(evaluation=Perplexity(objective=Nelbo())),
            r"evaluation.objective=Nelbo\(\): predicts tokens",
        ),
    ],
)
def test_labels_need_a_head_and_an_objective(changes, reason):
    base = bert()
    made = load_file("glue", base=lambda: base)
    with pytest.raises(InputError, match=reason):
        replace(made, **changes)
    message = r"objective=Classification\(\): predicts classes, and the data have tokens to predict"
    with pytest.raises(InputError, match=message):
        replace(base, objective=Classification())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no `experiment"),
        ("x = 1\nraise KeyError('here')\n", "line 2: KeyError: 'here'"),
        ("x = (\n", "line 1"),
    ],
)
def test_faulty_files_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "e.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_file(tmp_path / "e.py")
    with pytest.raises(InputError, match="no such file"):
        load_file(tmp_path / "missing.py")


def test_a_module_beside_the_file_is_found(tmp_path):
    """While the file is executed and later; each file finds those of its own folder."""
    for name, width in (("one", 32), ("two", 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "widths_of_mine.py").write_text(f"WIDTH = {width}\n")
        text = tiny.FILE.replace("width=32", "width=WIDTH").format(text="t.txt")
        text = text.replace("from mdlm.optim", "from widths_of_mine import WIDTH\nfrom mdlm.optim")
        (tmp_path / name / "mine.py").write_text(text)
        assert load_file(tmp_path / name / "mine.py").network.width == width
        assert __import__("widths_of_mine").WIDTH == width


def test_a_file_knows_where_it_lies_also_as_a_copy(tmp_path, monkeypatch):
    (tmp_path / "proj").mkdir()
    text = "from pathlib import Path\n" + tiny.FILE.replace(
        "{text!r}", 'str(Path(__file__).parent / "t.txt")'
    )
    for name in ("proj/mine.py", "copy.py"):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    there, copy = load_file("proj/mine.py"), load_file("copy.py", copy_of="proj/mine.py")
    assert there.data.source.train == str(tmp_path / "proj" / "t.txt")
    assert copy == there
    assert load_file("copy.py", copy_of="gone/mine.py").data.source.train == str(tmp_path / "t.txt")


def test_annotations_of_own_components_may_be_text(tmp_path):
    (tmp_path / "e.py").write_text(
        "from __future__ import annotations\n"
        + tiny.FILE.format(text="t.txt")
        + "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Mine(DiT):\n    half: Wrap | None = None\n"
        "experiment = dataclasses.replace(experiment, network=Mine(width=32, depth=1, heads=2))\n"
    )
    found = {name for name, _, _ in names(load_file(tmp_path / "e.py"))}
    assert "network.half" in found


def test_a_file_in_another_encoding_says_so_or_is_refused(tmp_path):
    text = tiny.FILE.format(text="caf\u00e9.txt")
    path = tmp_path / "e.py"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="not UTF-8 text: .*; save it as UTF-8"):
        load_file(path)
    for lines, encoding in (("", "utf-8-sig"), ("# coding: latin-1\n", "latin-1")):
        path.write_text(lines + text, encoding=encoding)
        assert load_file(path).data.source.train == "caf\u00e9.txt"


def test_mesh_and_batch_must_fit():
    with pytest.raises(InputError, match="data=3 does not fit 8 devices"):
        MeshShape(data=3).build()
    with pytest.raises(InputError, match="fsdp=16 does not fit"):
        MeshShape(fsdp=16).build()
    with pytest.raises(ValueError, match="must be at least 1"):
        MeshShape(data=0)
    mesh = MeshShape(data=4, fsdp=2).build()
    check_batch(mesh, 16, 2)
    with pytest.raises(InputError, match="12 rows does not divide over 8 devices"):
        check_batch(mesh, 12)
    with pytest.raises(InputError, match="in 4 micro-batches"):
        check_batch(mesh, 16, 4)
