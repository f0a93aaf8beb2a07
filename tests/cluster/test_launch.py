"""Which process this is: from flags, from the environment, and alone where nothing says more."""

import pytest

from mdlm.cluster.launch import Place, place
from mdlm.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture
def alone(monkeypatch):
    """An environment that says nothing of other processes."""
    import os

    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_without_flags_or_signs_a_process_is_alone(alone):
    assert place(None, None, None) is None
    alone.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a notebook in a cluster
    assert place(None, None, None) is None


def test_flags_say_the_place(alone):
    there = place("node0:1234", 4, 3)
    assert there == Place(coordinator="node0:1234", count=4, index=3, devices=None)
    assert place("[fe80::1]:99", 2, 0) == Place(coordinator="[fe80::1]:99", count=2, index=0)
    alone.setenv("JAX_COORDINATOR_ADDRESS", "node7:55")
    assert place(None, 2, 1) == Place(coordinator="node7:55", count=2, index=1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("node0:1234", None, None), "--coordinator without --processes and --process"),
        ((None, 2, 0), "--processes and --process without --coordinator"),
        (("node0:1234", 2, None), "--coordinator and --processes without --process"),
        (("node0:1234", 2, 2), "--process 2: with --processes 2 they count from 0 to 1"),
        (("node0:1234", 2, -1), "--process -1"),
        (("node0:1234", 0, 0), "--processes 0: there is at least one"),
        (("node0", 2, 0), "--coordinator node0: expected HOST:PORT"),
        (("node0:http", 2, 0), "expected HOST:PORT"),
        ((":1234", 2, 0), "expected HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(alone, flags, words):
    with pytest.raises(InputError) as refused:
        place(*flags)
    assert words in str(refused.value)


def test_an_address_without_a_number_is_refused(alone):
    alone.setenv("JAX_COORDINATOR_ADDRESS", "node7:55")
    with pytest.raises(InputError, match="--processes N --process I are needed"):
        place(None, None, None)


def test_slurm_says_the_place(alone):
    for name, value in SLURM.items():
        alone.setenv(name, value)
    # The port that JAX makes of the job's number.
    expected = Place(coordinator=f"node003:{4100 % 4096 + 61440}", count=2, index=1)
    assert place(None, None, None) == expected
    assert place("other:1", 3, 2) == Place(coordinator="other:1", count=3, index=2)


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "5"}, (5,)),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": "0"},
            None,
        ),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
    ],
)
def test_tasks_that_share_a_node_share_its_devices(alone, changes, devices):
    for name, value in {**SLURM, **changes}.items():
        alone.setenv(name, value)
    there = place(None, None, None)
    assert there is not None and there.devices == devices


def test_one_process_is_alone_whatever_the_environment_says(alone):
    for name, value in SLURM.items():
        alone.setenv(name, value)
    assert place(None, 1, None) is None and place("node0:1234", 1, 0) is None


def test_open_mpi_says_the_place_or_is_refused(alone):
    alone.setenv("OMPI_COMM_WORLD_SIZE", "4")
    alone.setenv("OMPI_COMM_WORLD_RANK", "3")
    alone.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    alone.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    with pytest.raises(InputError, match="started by mpirun, which does not tell"):
        place(None, None, None)  # newer ones do not say where the others are
    alone.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    there = place(None, None, None)
    assert there is not None and (there.count, there.index, there.devices) == (4, 3, (1,))
    assert there.coordinator.startswith("10.96.0.1:")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},  # srun with one task
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_STEP_NODELIST": ""},  # a batch script, without srun
    ],
)
def test_one_task_of_slurm_is_alone(alone, changes):
    for name, value in {**SLURM, **changes}.items():
        alone.setenv(name, value)
    assert place(None, None, None) is None
