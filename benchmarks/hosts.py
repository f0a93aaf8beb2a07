"""Stops a run and resumes it with another number of hosts, and compares with an undisturbed run.

    python -m benchmarks.hosts experiments/books.py --hosts 2 3 --steps 300 --stop 150 \\
        --data.store stores/books

The compared run gets its batches from several loaders, one per host, each of which makes its part
of every global batch: `--hosts BEFORE AFTER` is their number up to step `--stop`, where the run is
saved and ended, and from there on. The hosts are simulated in one process: their parts are joined
before they go to the device. The batches of all steps are compared by checksum, and the parameters
at the end bit by bit. The exit code is 1 if anything differs.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import harness
from mdlm.cli.arguments import overrides
from mdlm.config.overrides import apply
from mdlm.data.loader import HostBatch, TrainLoader, process_part
from mdlm.errors import InputError
from mdlm.experiment.loading import load_file
from mdlm.run import load
from mdlm.train.session import Session


class JoinedHosts(TrainLoader):
    """The joined loaders of several hosts. They store a checksum of each batch in `seen`."""

    def __init__(self, hosts: int, seen: dict[int, str], rows, batch_size, seed, *_):
        super().__init__(rows, batch_size, seed)
        self.seen = seen
        self.loaders = [
            TrainLoader(rows, batch_size, seed, process_part(batch_size, i, hosts))
            for i in range(hosts)
        ]

    def batch_at(self, position: int) -> HostBatch:
        parts = [loader.batch_at(position) for loader in self.loaders]
        joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != "rows"}
        state = hashlib.sha256()
        for name in sorted(joined):
            state.update(np.ascontiguousarray(joined[name]).tobytes())
        self.seen[position] = state.hexdigest()
        return {**joined, "rows": parts[0]["rows"]}


@contextmanager
def fed_by(hosts: int, seen: dict[int, str]) -> Iterator[None]:
    """Within this context, training takes its batches from this number of hosts."""

    def loader(*arguments: Any) -> JoinedHosts:
        return JoinedHosts(hosts, seen, *arguments)

    with mock.patch("mdlm.train.loop.TrainLoader", loader):
        yield


def train(
    begin: Callable[[Path], Session], out: Path, hosts: int, stop: int | None
) -> dict[int, str]:
    """Trains to step `stop` (None: the last) in a new or existing run folder.

    Returns checksums of the batches, by position in the data.
    """
    seen: dict[int, str] = {}
    session = begin(out)
    with fed_by(hosts, seen), harness.working(f"{hosts} host(s) to step {stop or 'the last'}"):
        for _ in session.train(should_stop=lambda: stop is not None and session.step >= stop):
            pass
    trained = session.step * session.experiment.train.batch_size
    return {position: checksum for position, checksum in seen.items() if position < trained}


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison. Exits with 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hosts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", help="an experiment file (.py)")
    parser.add_argument("--hosts", type=int, nargs=2, default=(2, 3), metavar=("BEFORE", "AFTER"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--stop",
        type=int,
        default=150,
        help="step at which the run is asked to stop (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=24, help="rows of a global batch (default: %(default)s)"
    )
    args, rest = parser.parse_known_args(argv)
    if not 0 < args.stop < args.steps:
        raise InputError(f"--stop {args.stop}: must be above 0 and below --steps {args.steps}")
    settings = {"steps": args.steps, "batch_size": args.batch, "log_every": 1, "eval_every": 0}
    changes = [*overrides(rest), *((f"train.{k}", str(v)) for k, v in settings.items())]
    experiment, source = (
        load_file(args.experiment),
        Path(args.experiment).read_text(encoding="utf-8"),
    )

    def begin(out: Path) -> Session:
        return Session(apply(experiment, changes), out, source=source, overrides=changes)

    with tempfile.TemporaryDirectory() as folder:
        alone, changed = Path(folder) / "alone", Path(folder) / "changed"
        whole = train(begin, alone, 1, None)
        before, after = args.hosts
        first = train(begin, changed, before, args.stop)
        second = train(begin, changed, after, None)
        if not equal(args, whole, (first, second), (parameters(alone), parameters(changed))):
            raise SystemExit(1)


def parameters(folder: Path) -> Any:
    """The EMA parameters of a run's last checkpoint, as NumPy arrays."""
    return jax.tree.map(np.asarray, load(folder).params)


def equal(args: argparse.Namespace, whole: dict, parts: tuple[dict, dict], params: tuple) -> bool:
    """Prints the comparison; returns whether everything is equal."""
    print("| steps | hosts | batches | as with one host | first batch | last batch |")
    print("|---|---|---|---|---|---|")
    is_equal = set(parts[0]) | set(parts[1]) == set(whole)
    for hosts, part in zip(args.hosts, parts, strict=True):
        same = sum(part[position] == whole.get(position) for position in part)
        is_equal &= same == len(part)
        at = sorted(part)
        steps = f"{at[0] // args.batch + 1}-{at[-1] // args.batch + 1}"
        ends = " | ".join(part[position][:12] for position in (at[0], at[-1]))
        print(f"| {steps} | {hosts} | {len(part)} | {same} | {ends} |")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *params)
    leaves = jax.tree.leaves(same)
    print(f"\nparameters after step {args.steps}: {sum(leaves)} of {len(leaves)} arrays equal")
    return is_equal and all(leaves)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
