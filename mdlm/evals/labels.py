"""How well what belongs to each row is predicted: metrics of classes and of numbers, in float64.

    accuracy               share of rows with the right class
    F1                     2 TP / (2 TP + FP + FN) of class 1, of two classes
    Matthews correlation   correlation of the tables of predicted and true classes (multi-class)
    Pearson correlation    of predicted and true numbers
    Spearman correlation   Pearson's of their ranks, ties with the mean of their ranks

A ratio 0 / 0 is 0: an F1 without any class 1, a correlation with something constant. Standard
errors over rows are those of the bootstrap: the deviation over `RESAMPLES` draws of as many rows,
with replacement and a fixed seed; of the mean loss it is the usual one.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mdlm.evals.nll import Metric
from mdlm.experiment.model import Model

RESAMPLES = 1000
"""Draws of the bootstrap."""


def metrics_of(
    model: Model, loss: Float[np.ndarray, " n"], answers: Float[np.ndarray, "n 2"], protocol: str
) -> list[Metric]:
    """Returns the metrics of what a model says of rows, from the loss and the answer of each."""
    classes, name = model.experiment.data.classes or 0, model.reported.loss_name
    return metrics(loss, answers, classes=classes, loss_name=name, protocol=protocol)


def metrics(
    loss: Float[np.ndarray, " n"],
    answers: Float[np.ndarray, "n 2"],
    *,
    classes: int,
    loss_name: str,
    protocol: str,
) -> list[Metric]:
    """Returns the mean loss, called `loss_name`, and the metrics of predicted and true values of
    rows, which are in the columns of `answers`: classes numbered from 0, or numbers if `classes`
    is 0."""
    n = len(loss)

    def metric(name: str, value: float, stderr: float | None) -> Metric:
        return Metric(name, float(value), None, None if n < 2 else stderr, n, protocol)

    spread = float(np.std(loss, ddof=1) / math.sqrt(n)) if n > 1 else None
    found = [metric(loss_name, loss.mean(), spread)]
    random = np.random.default_rng(0)
    if classes:
        table = confusion(answers, classes)
        drawn = random.multinomial(n, table.ravel() / n, RESAMPLES).reshape(-1, *table.shape)
        of_classes: dict[str, Callable] = {"accuracy": accuracy}
        if classes == 2:
            of_classes["F1"] = f1
        of_classes["Matthews correlation"] = matthews
        for name, measure in of_classes.items():
            spread = float(np.std(measure(drawn), ddof=1))
            found.append(metric(name, measure(table[None])[0], spread))
        return found
    rows = random.integers(0, n, (RESAMPLES, n))
    for name, correlation in (
        ("Pearson correlation", pearson),
        ("Spearman correlation", spearman),
    ):
        spread = float(np.std([correlation(*answers[own].T) for own in rows], ddof=1))
        found.append(metric(name, correlation(*answers.T), spread))
    return found


def confusion(answers: Float[np.ndarray, "n 2"], classes: int) -> Int[np.ndarray, "k k"]:
    """Returns how many rows have each predicted class (by row) and true class (by column)."""
    predicted, true = np.asarray(answers, np.int64).T
    flat = np.bincount(predicted * classes + true, minlength=classes**2)
    return flat.reshape(classes, classes)


def accuracy(tables: Int[np.ndarray, "s k k"]) -> Float[np.ndarray, " s"]:
    """Returns the accuracy of each of several tables as `confusion` makes."""
    return np.trace(tables, axis1=1, axis2=2) / tables.sum(axis=(1, 2))


def f1(tables: Int[np.ndarray, "s k k"]) -> Float[np.ndarray, " s"]:
    """Returns the F1 of class 1 in each of several tables of two classes."""
    right = tables[:, 1, 1].astype(np.float64)
    return _ratio(2 * right, 2 * right + tables[:, 1, 0] + tables[:, 0, 1])


def matthews(tables: Int[np.ndarray, "s k k"]) -> Float[np.ndarray, " s"]:
    """Returns the Matthews correlation (Gorodkin's, of k classes) of each of several tables."""
    tables = tables.astype(np.float64)
    n, right = tables.sum(axis=(1, 2)), np.trace(tables, axis1=1, axis2=2)
    predicted, true = tables.sum(axis=2), tables.sum(axis=1)
    product = lambda a, b: (a * b).sum(axis=-1)
    together = right * n - product(predicted, true)
    apart = (n**2 - product(predicted, predicted)) * (n**2 - product(true, true))
    return _ratio(together, np.sqrt(apart))


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Returns Pearson's correlation."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    # Of what is constant, the mean may be off in its last digit.
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return 0.0
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Returns Spearman's correlation."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the rank of each value, from 1; equal ones have the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group.ravel()]


def _ratio(
    above: Float[np.ndarray, " s"], below: Float[np.ndarray, " s"]
) -> Float[np.ndarray, " s"]:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)
