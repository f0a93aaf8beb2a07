"""Tasks of lm-eval with a run, and the share of the noise in the errors of their results.

The standard error that lm-eval reports is the spread between documents. Each document's value is
computed from its own draws, so their noise is a part of that spread. It is not where documents are
alike, or few. `metric_noise_stderr` is the standard error that the noise alone gives: the spread of
the metric when all log-likelihoods are drawn anew from normal distributions with their own standard
errors. Where it is larger than the spread between documents, it is what is reported.
"""

import difflib
import importlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mdlm.errors import InputError
from mdlm.interop.harness import HarnessModel

# lm-eval's own types are too narrow for its models, and it may not be installed.
simple_evaluate: Any = importlib.import_module("lm_eval").simple_evaluate
TaskManager: Any = importlib.import_module("lm_eval.tasks").TaskManager

REPEATS = 200
"""How often metrics are computed anew for their noise."""
KINDS = {
    "multiple_choice": "loglikelihood",
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
}
"""The kind of request of a task's type, where it is of log-likelihoods."""


class _Kept(TaskManager):
    """A task manager that keeps the tasks it loads."""

    loaded: dict[str, Any]

    def load(self, *arguments: Any, **settings: Any) -> Any:
        self.loaded = super().load(*arguments, **settings)
        return self.loaded


def evaluate(
    model: HarnessModel, tasks: list[str], include_path: str | None = None, **settings: Any
) -> dict[str, Any]:
    """Returns the results of tasks as lm-eval's `simple_evaluate` does, with the noise in them.

    `include_path` is a folder with task files of one's own; `settings` are for `simple_evaluate`.
    Raises InputError if there is no such folder or task.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"--include-path {include_path}: no such folder")
    manager = _Kept(include_path=include_path)
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--tasks {name}: no such task of lm-eval{hint}")
    results = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager,
        log_samples=True,
        torch_random_seed=None,
        **settings,
    )
    for name, task in manager.loaded["tasks"].items():
        _add_noise(results["results"][name], results["samples"][name], task, model)
    return results


def _add_noise(
    result: dict[str, Any], samples: list[dict[str, Any]], task: Any, model: HarnessModel
) -> None:
    """Adds the standard error that is due to noise to each metric of a task."""
    kind = KINDS.get(task.OUTPUT_TYPE)
    if kind is None:
        return
    for filtered in {sample["filter"] for sample in samples}:
        own = [sample for sample in samples if sample["filter"] == filtered]
        asked = [[tuple(request) for request in sample["arguments"]] for sample in own]
        keys = [[model.answers.key(kind, request) for request in part] for part in asked]
        errors = {key: model.answers.known[key].stderr for part in keys for key in part}
        for metric, noise in _spread(task, own, keys, errors).items():
            reported = result.get(f"{metric}_stderr,{filtered}")
            if f"{metric},{filtered}" in result:
                result[f"{metric}_noise_stderr,{filtered}"] = noise
                if noise > 0 and (not isinstance(reported, float) or noise > reported):
                    result[f"{metric}_stderr,{filtered}"] = noise


def _spread(
    task: Any, samples: list[dict[str, Any]], keys: list[list[str]], errors: dict[str, float]
) -> dict[str, float]:
    """Returns the standard deviation of each metric over log-likelihoods with new noise. `keys` are
    those of the requests of each sample: the same request has one answer, with one noise."""
    random, aggregate = np.random.default_rng(0), task.aggregation()
    found = defaultdict(list)
    for _ in range(REPEATS if any(errors.values()) else 1):
        values = defaultdict(list)
        noise = {key: error * random.normal() for key, error in errors.items()}
        for sample, own in zip(samples, keys, strict=True):
            drawn = [
                _moved(answer, noise[key])
                for answer, key in zip(sample["filtered_resps"], own, strict=True)
            ]
            for metric, value in task.process_results(sample["doc"], drawn).items():
                values[metric].append(value)
        for metric, own in values.items():
            if metric in aggregate:
                found[metric].append(aggregate[metric](own))
    return {metric: float(np.std(values)) for metric, values in found.items()}


def _moved(answer: Any, by: float) -> Any:
    """Returns a log-likelihood, or one with whether it is greedy, changed by so much."""
    return answer + by if isinstance(answer, float) else (answer[0] + by, *answer[1:])
