"""Worker processes that tokenise blocks, several at once; their answers come back in order."""

import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mdlm.data.preparation.worker import Setting
from mdlm.data.text.chunks import Block, Encoded
from mdlm.errors import InputError

AHEAD = 2
"""Blocks that wait for each worker: it need not wait for the reader."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """`workers` processes. Leaving the context ends them, whatever they are at."""

    def __init__(self, workers: int, setting: Setting):
        self.workers = workers
        # One thread of the library's in each: the processes are what is in parallel.
        threads = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        threads |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # They import this very package.
        threads["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._processes: list[subprocess.Popen] = []
        self._free: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers)
        self._is_closing = False
        for _ in range(workers):
            process = subprocess.Popen(
                [sys.executable, "-m", "mdlm.data.preparation.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **threads},
                process_group=0,  # Ctrl-C is for the process that started them
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
                    pass  # something was on the way

    def encode(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Encoded]]:
        """Each block with its tokens, in order. InputError where its text is refused.

        Where the blocks end with an error, those before it come first.
        """
        waiting: deque[tuple[Block, Future[Encoded]]] = deque()
        unread, failure = iter(blocks), None
        while True:
            try:
                block = next(unread, None)
            except Exception as error:
                block, failure = None, error
            if block is not None:
                waiting.append((block, self._threads.submit(self._ask, block)))
            while waiting and (
                block is None or waiting[0][1].done() or len(waiting) > AHEAD * self.workers
            ):
                first, answer = waiting.popleft()
                yield first, answer.result()
            if failure is not None:
                raise failure
            if block is None:
                return

    def _ask(self, block: Block) -> Encoded:
        process = self._free.get()
        self._send(process, (block.texts, block.open))
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
        self._free.put(process)  # lest another thread waits for ever
        code = None if self._is_closing else process.wait()
        why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return InputError(
            f"a tokenising process ended ({why}); if memory ran out, --workers takes fewer"
        )
