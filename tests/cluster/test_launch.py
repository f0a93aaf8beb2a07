"""The rank of a process: from flags, from the environment, or a single process."""

import os

import pytest

from mdlm.cluster import launch
from mdlm.cluster.launch import Rank, find_rank
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
def single(monkeypatch):
    """An environment without variables of other processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_without_flags_and_variables_a_process_is_single(single):
    assert find_rank(None, None, None) is None
    single.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a notebook in a cluster
    assert find_rank(None, None, None) is None


def test_flags_give_the_rank(single):
    rank = find_rank("node0:1234", 4, 3)
    assert rank == Rank(coordinator="node0:1234", count=4, index=3, devices=None)
    assert find_rank("[fe80::1]:99", 2, 0) == Rank(coordinator="[fe80::1]:99", count=2, index=0)
    single.setenv("JAX_COORDINATOR_ADDRESS", "node7:55")
    assert find_rank(None, 2, 1) == Rank(coordinator="node7:55", count=2, index=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("node0:1234", None, None), "--coordinator without --processes and --process: give all"),
        ((None, 2, 0), "--processes and --process without --coordinator: give all"),
        (("node0:1234", 2, None), "--coordinator and --processes without --process"),
        (("node0:1234", 2, 2), "--process 2: must be from 0 to 1 with --processes 2"),
        (("node0:1234", 2, -1), "--process -1: must be from 0 to 1"),
        (("node0:1234", 0, 0), "--processes 0: must be at least 1"),
        (("node0", 2, 0), "--coordinator node0: must be HOST:PORT"),
        (("node0:http", 2, 0), "must be HOST:PORT"),
        ((":1234", 2, 0), "must be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(single, flags, message):
    with pytest.raises(InputError) as refused:
        find_rank(*flags)
    assert message in str(refused.value)


def test_an_address_without_a_rank_is_refused(single):
    single.setenv("JAX_COORDINATOR_ADDRESS", "node7:55")
    with pytest.raises(InputError, match="give --processes N --process I too"):
        find_rank(None, None, None)


def test_slurm_gives_the_rank(single):
    for name, value in SLURM.items():
        single.setenv(name, value)
    # JAX derives the port from the job's number.
    expected = Rank(coordinator=f"node003:{4100 % 4096 + 61440}", count=2, index=1)
    assert find_rank(None, None, None) == expected
    assert find_rank("other:1", 3, 2) == Rank(coordinator="other:1", count=3, index=2)


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
def test_tasks_that_share_a_node_share_its_devices(single, changes, devices):
    for name, value in {**SLURM, **changes}.items():
        single.setenv(name, value)
    rank = find_rank(None, None, None)
    assert rank is not None and rank.devices == devices


def test_one_process_is_single_in_any_environment(single):
    for name, value in SLURM.items():
        single.setenv(name, value)
    assert find_rank(None, 1, None) is None and find_rank("node0:1234", 1, 0) is None


def test_open_mpi_gives_the_rank_or_is_refused(single):
    single.setenv("OMPI_COMM_WORLD_SIZE", "4")
    single.setenv("OMPI_COMM_WORLD_RANK", "3")
    single.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    single.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    with pytest.raises(InputError, match="started by mpirun, but JAX cannot read the rank"):
        find_rank(None, None, None)  # newer versions do not set the coordinator
    single.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    rank = find_rank(None, None, None)
    assert rank is not None and (rank.count, rank.index, rank.devices) == (4, 3, (1,))
    assert rank.coordinator.startswith("10.96.0.1:")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},  # srun with one task
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_STEP_NODELIST": ""},  # a batch script, without srun
    ],
)
def test_one_task_of_slurm_is_single(single, changes):
    for name, value in {**SLURM, **changes}.items():
        single.setenv(name, value)
    assert find_rank(None, None, None) is None


@pytest.mark.parametrize(
    ("there", "then"),
    [
        ({}, "node0"),
        ({"no_proxy": "a.org"}, "a.org,node0"),
        ({"no_proxy": "a.org", "no_grpc_proxy": "b.org"}, "b.org,node0"),
    ],
)
def test_no_proxy_is_asked_for_the_coordinator(monkeypatch, there, then):
    """gRPC, which the runtime speaks, would connect to it through `http_proxy`."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.setenv(name, there.get(name, ""))
    launch.reach_directly("node0:1234")
    assert os.environ["no_grpc_proxy"] == then
