"""Many pictures through a Model: threads that decode, resize and run, and results in order (``Model.map``)."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import arguments, values
from .outputs import check_names

if TYPE_CHECKING:
    from .model import Model

#: Batches under way for each worker: one that it has, and enough beside it that none waits for the slowest.
AHEAD = 4
#: Batches for each worker that the thread which takes the results waits for at a time: every time that it wakes up, it
#: takes a core from a worker.
AT_A_TIME = 2

#: What a picture may fail with. Anything else is an error of the program, and is raised.
FAILURES = (OSError, ValueError, TypeError, MemoryError)


@dataclass(frozen=True, slots=True)
class MapResult:
    """What ``Model.map`` gives for one picture.

    ``index``: its place, from 0. ``source``: what was given. ``output``: what ``Model.run`` gives for it, None where it
    failed. ``error``: why it failed, or None.
    """

    index: int
    source: Any
    output: npt.NDArray[np.float32] | dict[str, npt.NDArray[np.float32]] | None
    error: Exception | None

    @property
    def ok(self) -> bool:
        return self.error is None


def start(
    model: Model,
    pictures: Iterable[Any],
    *,
    workers: int | None,
    batch: int,
    ordered: bool,
    on_error: str,
    progress: bool | Callable[[int, int], object],
    size: int | tuple[int, int] | None,
    outputs: Sequence[str] | None,
) -> Iterator[MapResult]:
    """Checks the arguments of ``Model.map``, and returns the iterator that it gives."""
    if isinstance(pictures, (str, os.PathLike)):
        raise TypeError("map takes several pictures, and this is the path of one: give a list of paths, or use run()")
    if not np.iterable(pictures):
        raise TypeError(f"pictures must be something to iterate over, not {type(pictures).__name__}")
    count = model.threads if workers is None else values.check_count("workers", workers)
    batch = values.check_count("batch", batch)
    if on_error not in ("report", "raise"):
        raise ValueError(f'on_error must be "report" or "raise", not {on_error!r}')
    names = None if outputs is None else check_names(outputs)
    if names is not None:
        model._named.check(names)
    at = model.input_size if size is None else values.check_size(size)
    arguments.check_takes_pictures(model._graph)
    model._output_at(*at)
    one = model._with_threads(1)

    def work(first: int, group: list[Any]) -> list[MapResult]:
        return _run(one, first, group, at, names)

    return _results(work, pictures, count, batch, ordered, on_error == "raise", _progress(progress))


def _results(
    work: Callable[[int, list[Any]], list[MapResult]],
    pictures: Iterable[Any],
    workers: int,
    batch: int,
    ordered: bool,
    strict: bool,
    tell: Callable[[int, int], object],
) -> Iterator[MapResult]:
    source = enumerate(pictures)
    pool = ThreadPoolExecutor(workers, "fastmobilenet-map")
    pending: deque[Future[list[MapResult]]] = deque()
    ended, failure = False, None
    done = failed = 0
    try:
        while True:
            while not ended and len(pending) < AHEAD * workers:
                group: list[tuple[int, Any]] = []
                try:
                    for item in itertools.islice(source, batch):
                        group.append(item)  # noqa: PERF402  what came before an error of the source counts
                    ended = len(group) < batch
                except Exception as error:
                    ended, failure = True, error
                if group:
                    pending.append(pool.submit(work, group[0][0], [picture for _, picture in group]))
            if not pending:
                break
            if ordered:
                if not pending[0].done():
                    wait([pending[min(AT_A_TIME * workers, len(pending)) - 1]])
                ready = pending.popleft()
            else:
                ready = next(iter(wait(pending, return_when=FIRST_COMPLETED).done))
                pending.remove(ready)
            for result in ready.result():
                done += 1
                failed += not result.ok
                tell(done, failed)
                if strict and result.error is not None:
                    raise result.error
                yield result
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
        tell(-1, failed)


def _run(
    model: Model, first: int, group: list[Any], at: tuple[int, int], names: tuple[str, ...] | None
) -> list[MapResult]:
    """A batch, in a worker."""
    from . import image

    inputs: list[npt.NDArray[Any]] = []  # (1, h, w, 3) of bytes, or what the network takes as floats
    errors: list[Exception | None] = []
    for picture in group:
        try:
            inputs.append(model._batch(image.decode(picture), at)[0])
            errors.append(None)
        except FAILURES as error:
            errors.append(error)
    found: list[Any] = []
    try:
        if inputs:
            batch = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
            out = model._run(batch, at, names)
            found = [{name: value[i] for name, value in out.items()} for i in range(len(inputs))]
            if names is None:
                found = [one[""] for one in found]
    except FAILURES as error:  # not enough memory
        errors = [before or error for before in errors]
    rest = iter(found)
    return [
        MapResult(first + i, picture, next(rest) if error is None else None, error)
        for i, (picture, error) in enumerate(zip(group, errors, strict=True))
    ]


def _progress(progress: bool | Callable[[int, int], object]) -> Callable[[int, int], object]:
    """What is called with the pictures done and those that failed, and at the end with -1."""
    if callable(progress):
        return lambda done, failed: progress(done, failed) if done >= 0 else None
    if not progress:
        return lambda done, failed: None
    from .cli.terminal import Progress

    line = Progress()

    def show(done: int, failed: int) -> None:
        if done < 0:
            line.clear()
        else:
            line.show(f"{values.counted(done, 'picture')}{f', {failed} failed' if failed else ''}")

    return show
