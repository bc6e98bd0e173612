"""How often a classifier is right: pictures whose classes are known, and what a Model makes of them.

>>> from fastmobilenet import Model, evaluation            # doctest: +SKIP
>>> data = evaluation.read("photos/")                      # doctest: +SKIP
>>> result = evaluation.evaluate(Model.load(), data)       # doctest: +SKIP
>>> result.top1                                            # doctest: +SKIP
0.93
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import labelled
from .labelled import Labelled

if TYPE_CHECKING:
    from .model import Model

read = labelled.read

#: Of so many classes the right one must be, to count for ``top5``.
TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found. ``pictures`` counts those that could be read; ``failed`` has the others, each with
    the reason.

    ``labels``: the classes that occur in the data, by their names. ``confusion``: int64 (classes, classes + 1); row i
    counts what pictures of class i were taken for, and the last column those taken for a class that does not occur.
    ``seconds``: of the whole, reading and resizing included.
    """

    model: str
    pictures: int
    right: int
    right5: int
    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    seconds: float
    workers: int
    failed: tuple[tuple[str, str], ...] = field(default=())

    @property
    def top1(self) -> float:
        """The share of pictures whose class is the most probable one, 0..1; NaN where there was none."""
        return self.right / self.pictures if self.pictures else float("nan")

    @property
    def top5(self) -> float:
        """The share of pictures whose class is among the five most probable ones."""
        return self.right5 / self.pictures if self.pictures else float("nan")

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds if self.seconds else float("nan")

    def recall(self) -> npt.NDArray[np.float64]:
        """The share of right answers of every class, NaN for one of which no picture could be read."""
        rows = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            share: npt.NDArray[np.float64] = np.diagonal(self.confusion) / rows
        return share

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data for JSON; shares of nothing are None."""
        empty = not self.pictures
        return {
            "model": self.model,
            "pictures": self.pictures,
            "top1": None if empty else self.top1,
            "top5": None if empty else self.top5,
            "seconds": self.seconds,
            "pictures_per_second": None if empty else self.pictures_per_second,
            "workers": self.workers,
            "labels": list(self.labels),
            "confusion": self.confusion[:, :-1].tolist(),
            "taken_for_other": self.confusion[:, -1].tolist(),
            "failed": [{"image": image, "error": error} for image, error in self.failed],
        }


def classes_of(model: Model, data: Labelled) -> list[int]:
    """For every class of the data, the class of the model that it is.

    By name where both have names; capitals, "_" and "-" do not matter. By number where the data has numbers only.
    Raises ValueError that lists what does not fit.
    """
    if model.classes is None:
        raise ValueError(f"{model.name} is no classifier: there is nothing to compare labels with")
    if data.names is None:
        highest = max(data.labels, default=-1)
        if highest >= model.classes:
            raise ValueError(f"{data.source}: has the class {highest}, and {model.name} has {model.classes} classes")
        return list(range(highest + 1))
    if model.labels is None:
        if len(data.names) == model.classes:
            return list(range(model.classes))
        raise ValueError(
            f"{model.name} has no names for its {model.classes} classes, and {data.source} has "
            f"{len(data.names)}: give the names with labels=..."
        )
    known: dict[str, int] = {}
    for i, label in enumerate(model.labels):
        known.setdefault(_plain(label), i)
    missing = [name for name in data.names if _plain(name) not in known]
    if missing:
        raise ValueError(
            f"{data.source}: {model.name} has no class {', '.join(map(repr, missing[:5]))}"
            f"{' and others' if len(missing) > 5 else ''}; it has {', '.join(map(repr, model.labels[:10]))}"
            f"{', ...' if len(model.labels) > 10 else ''}"
        )
    return [known[_plain(name)] for name in data.names]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def evaluate(
    model: Model,
    data: Labelled,
    *,
    workers: int | None = None,
    batch: int = 8,
    size: int | tuple[int, int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Run ``model`` on all pictures of ``data`` and count how often it is right.

    ``workers``, ``batch`` and ``size`` are those of ``Model.map``. ``progress`` is called with the pictures done and
    their number. A picture that cannot be read does not stop the others; it is in ``failed`` and counts for nothing
    else. Raises ValueError where the classes do not fit the model's.
    """
    fits = classes_of(model, data)
    truth = np.array([fits[label] for label in data.labels], np.int64)
    present = sorted(set(truth.tolist()))
    place = {index: row for row, index in enumerate(present)}
    confusion = np.zeros((len(present), len(present) + 1), np.int64)
    right = right5 = done = 0
    failed: list[tuple[str, str]] = []
    start = time.perf_counter()
    for result in model.map(data, workers=workers, batch=batch, size=size):
        done += 1
        if progress is not None:
            progress(done, len(truth))
        if result.error is not None:
            failed.append((data.name(result.index), str(result.error)))
            continue
        assert isinstance(result.output, np.ndarray)
        wanted = int(truth[result.index])
        rank, best = _rank(result.output, wanted)
        right += rank == 0
        right5 += rank < TOP
        confusion[place[wanted], place.get(best, len(present))] += 1
    seconds = time.perf_counter() - start
    names = model.labels if model.labels is not None else data.names if data.names is not None else None
    labels = tuple(f"class {i}" if names is None else names[i] for i in present)
    used = model.threads if workers is None else workers
    count = done - len(failed)
    return Evaluation(model.name, count, right, right5, labels, confusion, seconds, used, tuple(failed))


def _rank(scores: npt.NDArray[np.float32], wanted: int) -> tuple[int, int]:
    """How many classes go before ``wanted``, and the first of all. Of equal scores the lower class goes first, as in
    ``Model.classify``; NaN goes last."""
    order = np.where(np.isnan(scores), -np.inf, scores).ravel()
    mine = order[wanted]
    rank = int((order > mine).sum() + (order[:wanted] == mine).sum())
    if np.isnan(scores.ravel()[wanted]):
        rank = len(order)
    return rank, int(order.argmax())


def table(result: Evaluation, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The confusion matrix as rows of text: a header, and for every class its counts and its share of right answers.
    The last column, of other classes, is left out where it is empty."""
    other = bool(result.confusion[:, -1].any())
    columns = result.confusion if other else result.confusion[:, :-1]
    head = ("", *(name[:5] for name in names), *(("other",) if other else ()), "right")
    shares = ["" if np.isnan(share) else f"{100 * share:.1f} %" for share in result.recall()]
    rows = [
        (name, *(str(n) if n else "." for n in row), share)
        for name, row, share in zip(names, columns.tolist(), shares, strict=True)
    ]
    return [head, *rows]
