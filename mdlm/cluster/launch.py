"""Becoming one of many processes: which they are, and meeting them.

Either the command line says it (`--coordinator HOST:PORT --processes N --process I`), or the
environment does: SLURM (`srun` with several tasks), Open MPI, a Cloud TPU slice of several hosts
(also on GKE), an indexed job of Kubernetes. JAX knows how to read these; here it is decided whether
there is anything to read, so that a laptop, one task, or one TPU host asks and waits for nobody.

This is also where standard output is left to process 0. Who is lost later on is found by
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
from mdlm.cluster.abort_handler import Aborts
from mdlm.cluster.heartbeat import Watch
from mdlm.errors import InputError

HEARTBEAT = 30
"""Seconds without a heartbeat after which the runtime takes a process for lost."""
JOIN = 60
"""Seconds to wait for the others, by default."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which process this is, of how many, and where they meet.

    `devices`: the accelerators of this host that it uses (None: all).
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


def place(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] | None = None,
) -> Place | None:
    """What the flags say, or where there are none, the environment; None for a process alone.

    InputError where flags are missing or do not fit together.
    """
    environment = os.environ if environment is None else environment
    address = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and processes is None and process is None:
        found = detected()
        if found is None and address is not None:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS={address} is set: --processes N --process I are needed,"
                " or unset it to run alone"
            )
        return found
    if processes == 1 and not process:
        return None  # whatever the environment says
    given = {"--coordinator": address, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        given = [name for name in given if name not in missing]
        raise InputError(f"{' and '.join(given)} without {' and '.join(missing)}")
    assert address is not None and processes is not None and process is not None
    if processes < 1:
        raise InputError(f"--processes {processes}: there is at least one")
    if not 0 <= process < processes:
        raise InputError(
            f"--process {process}: with --processes {processes} they count from 0 to"
            f" {processes - 1}"
        )
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator {address}: expected HOST:PORT")
    return Place(coordinator=address, count=processes, index=process)


def detected() -> Place | None:
    """The place that the environment gives this process; None where it is alone.

    InputError where the environment speaks of several processes and does not say enough.
    """
    here = os.environ
    if _several("SLURM_STEP_NUM_TASKS"):
        tasks = here.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
        return _of("SlurmCluster", "srun", tasks, here.get("SLURM_LOCALID", "0"))
    if _several("OMPI_COMM_WORLD_SIZE"):
        tasks = here.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        return _of("OmpiCluster", "mpirun", tasks, here.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
    if jax_private.is_cloud_tpu():
        if "TPU_PROCESS_ADDRESSES" in here or "TPU_WORKER_HOSTNAMES" in here:
            return _of("GkeTpuCluster", "GKE")
        return None if "TPU_SKIP_MDS_QUERY" in here else _of("GceTpuCluster", "Cloud TPU")
    if "KUBERNETES_SERVICE_HOST" in here and "JOB_COMPLETION_INDEX" in here:
        return _of("K8sCluster", "Kubernetes")
    return None


def _several(name: str) -> bool:
    text = os.environ.get(name, "")
    return text.isdecimal() and int(text) > 1


def _of(cluster: str, name: str, tasks: str = "1", local: str = "0") -> Place | None:
    """The place that JAX reads from an environment; None where that holds one process.

    Of `tasks` of a node each gets the device of its number, unless its launcher has seen to that;
    a single one gets all.
    """
    known = jax_private.cluster(cluster)
    try:
        if not known.is_env_present():
            if name in ("srun", "mpirun"):
                raise RuntimeError("its variables are not those that JAX knows")
            return None
        count = known.get_process_count()
        if count < 2:
            return None
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or known.get_coordinator_address(
            JOIN, os.environ.get("JAX_COORDINATOR_PORT")
        )
        index = known.get_process_id()
    except Exception as error:
        raise InputError(
            f"started by {name}, which does not tell which process this is ({error}): give"
            " --coordinator, --processes and --process, or --processes 1 to run alone"
        ) from error
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shares = tasks != "1" and not (visible and "," not in visible)
    return Place(
        coordinator=address, count=count, index=index, devices=(int(local),) if shares else None
    )


@contextlib.contextmanager
def joined(place: Place | None, *, patience: int | None = None, advice: str = "") -> Iterator[None]:
    """Within it this process is one of many. Leaving it waits for the others.

    `patience`: seconds to wait for the others at first. InputError where they do not come, or
    ended by the runtime: exit code 2 and a line on standard error.
    """
    if place is None:
        yield
        return
    import jax

    err = io.TextIOWrapper(io.FileIO(os.dup(2), "w"), line_buffering=True)
    _quiet_standard_output(place.index == 0)
    seconds = JOIN if patience is None else patience
    meaning = partial(_meaning, place=place, seconds=seconds)
    with Aborts(err, meaning, is_gone=lambda: not _listens(place.coordinator)) as aborts:
        with aborts.captured():
            began = time.monotonic()
            if place.index:
                _await(place, seconds)
            try:
                jax.distributed.initialize(
                    place.coordinator,
                    place.count,
                    place.index,
                    local_device_ids=place.devices,
                    cluster_detection_method="deactivate",
                    initialization_timeout=max(1, round(seconds - time.monotonic() + began)),
                    heartbeat_timeout_seconds=HEARTBEAT,
                    shutdown_timeout_seconds=HEARTBEAT,
                )
            except RuntimeError as error:
                raise InputError(meaning(str(error))) from error
        client = jax_private.coordination_client()
        party = process_group.Party(client, place.index, place.count, err)
        process_group.enter(party)
        aborts.watch = watch = Watch(party, advice)
        watch.suspects = lambda some: aborts.hold() if some else aborts.release()
        watch.start()
        yield
        sys.stdout.flush()
        process_group.meet()
        watch.close()
        process_group.enter(None)
        jax.distributed.shutdown()


def _quiet_standard_output(speaks: bool) -> None:
    """Standard output for process 0 alone, and there for what is printed by Python: the runtime
    writes lines of its own on it."""
    sys.stdout.flush()
    out = os.dup(1) if speaks else os.devnull
    sys.stdout = io.TextIOWrapper(io.FileIO(out, "w"), line_buffering=sys.stdout.isatty())
    with io.FileIO(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _await(place: Place, seconds: float) -> None:
    """Returns when somebody listens at the coordinator's address. InputError if nobody does."""
    until = time.monotonic() + seconds
    while not _listens(place.coordinator):
        if time.monotonic() > until:
            raise InputError(
                f"process {place.index}: nobody answered at {place.coordinator}, where process 0"
                f" was to be, within {seconds} s"
            )
        time.sleep(0.2)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _meaning(log: str, place: Place, seconds: float) -> str:
    """What the runtime's words mean, in one line."""
    number = f"process {place.index}: " if place.index else ""
    return number + _cause(log, place, seconds)


def _cause(log: str, place: Place, seconds: float) -> str:
    at = f"at {place.coordinator}"
    if "newer incarnation" in log or "ALREADY_EXISTS" in log:
        return f"another process {at} says that it is process {place.index} too"
    if "Unexpected task" in log or "INVALID_ARGUMENT" in log:
        return (
            f"process 0 {at} knows of no process {place.index}: was it started with another"
            " --processes?"
        )
    if "Failed to start RPC server" in log:
        return f"process 0 cannot listen {at}: the port is taken, or not of this host"
    if "DEADLINE_EXCEEDED" in log:
        return f"not all of the {place.count} processes came {at} within {seconds} s"
    last = [line for line in log.strip().splitlines() if line.strip()]
    return f"the processes {at} could not be joined: {last[-1] if last else 'no reason given'}"
