"""A pool of worker processes that tokenize chunks in parallel and return them in order."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mdlm.data.preparation.worker import Setting
from mdlm.data.text.chunks import Chunk, Encoded
from mdlm.errors import InputError

AHEAD = 2
"""Chunks queued for each worker, so that it need not wait for the reader."""


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def relay(said: int) -> None:
    """Prints what comes through a pipe on standard error, until all of its writers are gone."""
    with open(said, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            print(line, end="", file=sys.stderr, flush=True)


class Pool:
    """A context with `workers` processes. Leaving it kills them at once."""

    def __init__(self, workers: int, setting: Setting):
        self.workers = workers
        # Each worker uses one thread: the parallelism is between the processes.
        threads = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        threads |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # The workers must import this same package.
        threads["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._processes: list[subprocess.Popen] = []
        self._free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers)
        self._is_closing = False
        said, saying = os.pipe()
        self._relay = threading.Thread(target=relay, args=(said,), daemon=True)
        self._relay.start()
        try:
            self._begin(setting, threads, saying)
        finally:
            os.close(saying)

    def _begin(self, setting: Setting, environment: dict[str, str], errors: int) -> None:
        """Starts the processes; they write what goes wrong to the descriptor `errors`."""
        for _ in range(self.workers):
            process = subprocess.Popen(
                [sys.executable, "-m", "mdlm.data.preparation.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                process_group=0,  # Ctrl-C must reach only the parent process
            )
            self._processes.append(process)
            self._free.put(process)
            self._send(process, setting)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self._is_closing = True
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    pipe.close()  # type: ignore[union-attr]
                except BrokenPipeError:
                    pass  # unsent data remained in the pipe
        self._relay.join()

    def encode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """Yields each chunk with its tokens, in order.

        Raises InputError if a text cannot be encoded or a worker dies. If `chunks` raises an
        error, the chunks before it come first.
        """
        pending: deque[tuple[Chunk, Future[Encoded]]] = deque()
        unread, failure = iter(chunks), None
        while True:
            try:
                chunk = next(unread, None)
            except Exception as error:
                chunk, failure = None, error
            if chunk is not None:
                pending.append((chunk, self._threads.submit(self._ask, chunk)))
            while pending and (
                chunk is None or pending[0][1].done() or len(pending) > AHEAD * self.workers
            ):
                first, answer = pending.popleft()
                yield first, answer.result()
            if failure is not None:
                raise failure
            if chunk is None:
                return

    def _ask(self, chunk: Chunk) -> Encoded:
        process = self._free.get()
        self._send(process, (chunk.texts, chunk.open))
        try:
            answer = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._died(process) from error
        self._free.put(process)
        if isinstance(answer, str):
            raise InputError(answer)
        return answer

    def _send(self, process: subprocess.Popen, what: Any) -> None:
        try:
            pickle.dump(what, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore
            process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError as error:
            raise self._died(process) from error

    def _died(self, process: subprocess.Popen) -> InputError:
        self._free.put(process)  # so that no other thread waits forever
        code = None if self._is_closing else process.wait()
        why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return InputError(
            f"a worker process that tokenizes ended ({why}): if memory ran out, lower --workers"
        )
