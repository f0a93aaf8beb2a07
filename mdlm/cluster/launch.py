"""Starts a run of many processes: finds the rank of this process and joins the others.

The rank is read from the command line (`--coordinator HOST:PORT --processes N --process I`) or
from the environment: SLURM (`srun` with several tasks), Open MPI, a Cloud TPU slice of several
hosts (also on GKE), an indexed job of Kubernetes. JAX reads these environments. This module decides
whether there is one to read, so that a laptop, a single task or a single TPU host waits for nobody.

It also leaves standard output to process 0. Processes that are lost later are found by
`mdlm.cluster.heartbeat` and `mdlm.cluster.abort_handler`.
"""

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from mdlm.cluster import jax_private, process_group
from mdlm.cluster.abort_handler import AbortHandler
from mdlm.cluster.heartbeat import Heartbeat
from mdlm.errors import InputError
from mdlm.foreign.output import Output

HEARTBEAT_TIMEOUT = 30
"""Seconds without a heartbeat after which the JAX runtime declares a process lost."""
JOIN_TIMEOUT = 60
"""Seconds to wait for the other processes at the start, by default."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which of the processes of a run this one is.

    Args:
        coordinator: HOST:PORT at which process 0 listens.
        count: number of processes.
        index: number of this process, from 0.
        devices: accelerators of this host that the process uses (None: all).
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


def find_rank(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> Rank | None:
    """Returns the rank given by the flags or, without flags, by the environment.

    None for a single process. Raises InputError if flags are missing or contradict each other.
    """
    environment = os.environ if environment is None else environment
    address = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and processes is None and process is None:
        found = detect_rank()
        if found is None and address is not None:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address}: the address alone is not enough; give"
                " --processes N --process I too, or unset it to run a single process"
            )
        return found
    if processes == 1 and not process:
        return None  # whatever the environment says
    given = {"--coordinator": address, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        given = [name for name in given if name not in missing]
        raise InputError(
            f"{' and '.join(given)} without {' and '.join(missing)}: give all three, or none"
        )
    assert address is not None and processes is not None and process is not None
    if processes < 1:
        raise InputError(f"--processes {processes}: must be at least 1")
    if not 0 <= process < processes:
        raise InputError(
            f"--process {process}: must be from 0 to {processes - 1} with --processes {processes}"
        )
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator {address}: must be HOST:PORT")
    return Rank(coordinator=address, count=processes, index=process)


def detect_rank() -> Rank | None:
    """Returns the rank given by the environment; None for a single process.

    Raises InputError if the environment has several processes but no rank that JAX can read.
    """
    here = os.environ
    if _is_several("SLURM_STEP_NUM_TASKS"):
        tasks = here.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
        return _read_cluster("SlurmCluster", "srun", tasks, here.get("SLURM_LOCALID", "0"))
    if _is_several("OMPI_COMM_WORLD_SIZE"):
        tasks = here.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        local = here.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")
        return _read_cluster("OmpiCluster", "mpirun", tasks, local)
    if jax_private.is_cloud_tpu():
        if "TPU_PROCESS_ADDRESSES" in here or "TPU_WORKER_HOSTNAMES" in here:
            return _read_cluster("GkeTpuCluster", "GKE")
        return None if "TPU_SKIP_MDS_QUERY" in here else _read_cluster("GceTpuCluster", "Cloud TPU")
    if "KUBERNETES_SERVICE_HOST" in here and "JOB_COMPLETION_INDEX" in here:
        return _read_cluster("K8sCluster", "Kubernetes")
    return None


def _is_several(name: str) -> bool:
    """Whether the environment variable `name` is a number above 1."""
    text = os.environ.get(name, "")
    return text.isdecimal() and int(text) > 1


def _read_cluster(cluster: str, name: str, tasks: str = "1", local: str = "0") -> Rank | None:
    """Returns the rank that JAX reads from a cluster's environment; None for one process.

    `name` is the launcher, for messages. If a node runs several `tasks`, the process uses the
    device whose number is its `local` rank, unless the launcher already shows it one device only.
    """
    known = jax_private.cluster(cluster)
    try:
        if not known.is_env_present():
            if name in ("srun", "mpirun"):
                raise RuntimeError("unknown environment variables")
            return None
        count = known.get_process_count()
        if count < 2:
            return None
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or known.get_coordinator_address(
            JOIN_TIMEOUT, os.environ.get("JAX_COORDINATOR_PORT")
        )
        index = known.get_process_id()
    except Exception as error:
        raise InputError(
            f"started by {name}, but JAX cannot read the rank of this process ({error}): give"
            " --coordinator, --processes and --process, or --processes 1 to run a single process"
        ) from error
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shares = tasks != "1" and not (visible and "," not in visible)
    return Rank(
        coordinator=address, count=count, index=index, devices=(int(local),) if shares else None
    )


@contextlib.contextmanager
def joined(rank: Rank | None, *, timeout: int | None = None, advice: str = "") -> Iterator[None]:
    """Context in which this process is one of many. Leaving it waits for the others.

    Raises InputError if the others do not join. Where the runtime aborts instead, the process ends
    with exit code 2 and one line on standard error.

    Args:
        rank: of this process (None: a single process, nothing is done).
        timeout: seconds to wait for the others to join.
        advice: what to do after a process was lost; ends the message.
    """
    if rank is None:
        yield
        return
    import jax

    err = open_errors()
    redirect_standard_output(rank.index == 0)
    seconds = JOIN_TIMEOUT if timeout is None else timeout
    explain = partial(_explanation, rank=rank, seconds=seconds)
    is_main_gone = lambda: not _is_listening(rank.coordinator)
    with AbortHandler(err, explain, is_main_gone) as handler:
        with handler.capture():
            try:
                _initialize(rank, seconds)
            except RuntimeError as error:
                raise InputError(explain(str(error))) from error
        client = jax_private.coordination_client()
        group = process_group.ProcessGroup(client, rank.index, rank.count, err)
        process_group.set_current(group)
        handler.heartbeat = heartbeat = Heartbeat(group, advice)
        heartbeat.on_suspicion = lambda is_any: handler.hold() if is_any else handler.release()
        heartbeat.start()
        yield
        sys.stdout.flush()
        process_group.barrier()
        heartbeat.close()
        process_group.set_current(None)
        jax.distributed.shutdown()


def _initialize(rank: Rank, seconds: float) -> None:
    """Starts the runtime of this process together with the others', within `seconds`."""
    import jax

    until = time.monotonic() + seconds
    reach_directly(rank.coordinator)
    if rank.index:
        _wait_for_coordinator(rank, seconds)
    jax.distributed.initialize(
        rank.coordinator,
        rank.count,
        rank.index,
        local_device_ids=rank.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(until - time.monotonic())),
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
    )


def reach_directly(address: str) -> None:
    """Tells the runtime, which reads `http_proxy`, to ask no proxy for the coordinator."""
    known = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""
    host = address.rpartition(":")[0].strip("[]")
    os.environ["no_grpc_proxy"] = ",".join(filter(None, (known, host)))


def open_errors() -> Output:
    """Returns standard error for the lines of this module's processes, even where that of the
    runtime is held back (`AbortHandler.hold`)."""
    return Output.on(os.dup(2), line_buffering=True, outlives=True)


def redirect_standard_output(is_main: bool) -> None:
    """Leaves standard output to process 0, and there to Python: the runtime prints lines of its
    own on file descriptor 1."""
    before = sys.stdout
    before.flush()
    sys.stdout = Output.on(
        os.dup(1) if is_main else os.devnull,
        line_buffering=before.isatty(),
        outlives=isinstance(before, Output) and before.outlives,
    )
    with io.FileIO(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _wait_for_coordinator(rank: Rank, seconds: float) -> None:
    """Returns when process 0 listens at its address. Raises InputError if it does not in time."""
    until = time.monotonic() + seconds
    while not _is_listening(rank.coordinator):
        if time.monotonic() > until:
            raise InputError(
                f"process {rank.index}: no answer from process 0 at {rank.coordinator} within"
                f" {seconds} s: check that it was started there and that its port is open"
            )
        time.sleep(0.2)


def _is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _explanation(log: str, rank: Rank, seconds: float) -> str:
    """Returns what the runtime's log means, in one line."""
    number = f"process {rank.index}: " if rank.index else ""
    return number + _cause(log, rank, seconds)


def _cause(log: str, rank: Rank, seconds: float) -> str:
    at = f"at {rank.coordinator}"
    if "newer incarnation" in log or "ALREADY_EXISTS" in log:
        return f"--process {rank.index}: taken by another process {at}; each needs its own number"
    if "Unexpected task" in log or "INVALID_ARGUMENT" in log:
        return (
            f"process 0 {at} expects no process {rank.index}: start all with the same --processes"
        )
    if "Failed to start RPC server" in log:
        return f"process 0 cannot listen {at}: the port is in use, or the address is another host's"
    if "DEADLINE_EXCEEDED" in log:
        return (
            f"not all of the {rank.count} processes joined {at} within {seconds} s: start the"
            " others, or raise --join-timeout"
        )
    last = [line for line in log.strip().splitlines() if line.strip()]
    return f"could not join the processes {at}: {last[-1] if last else 'no reason given'}"
