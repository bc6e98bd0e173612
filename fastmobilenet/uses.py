"""What a Model is used for beside classes: features, heads of one's own, many pictures, asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import arguments, outputs
from .graph import Graph, count_parameters

if TYPE_CHECKING:
    from .lower import Engine
    from .model import Model
    from .streaming import MapResult


class Uses:
    """Methods of :class:`fastmobilenet.model.Model` that are made of its ``run``."""

    _engine: Engine
    _graph: Graph
    _parameters: int
    _requested_threads: int | None
    _threads: int

    def features(self: Any, x: Any, *, size: int | tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """The embedding of a picture, the input of a head of one's own: float32 (features,), (n, features) for several.

        It is the output of the network's global pool, as ``forward_features`` and the pool give it in timm: of
        MobileNet V3 and V4 what comes before the hidden layer. SqueezeNet has its classifier before the pool: its
        embedding is the pool of what that reads. Networks without a global pool, as VGG and AlexNet, give the input of
        their last layer.
        Takes and raises what :meth:`run` does. Layers behind the embedding are not computed.
        """
        found: npt.NDArray[np.float32] = self.run(x, size=size, outputs=["embedding"])["embedding"]
        if found.ndim > 2:  # a map, which a dense layer reads in the order of NHWC
            if self._graph.input_layout == "NCHW":
                found = np.moveaxis(found, -3, -1)
            found = found.reshape(*found.shape[:-3], -1)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network, its preprocessing and its labels to a .fmn file, which loads fastest.

        The network is written as it runs, batch norm folded and activations fused; a Model that is loaded from the file
        gives the same bits. The file is written whole or not at all: while it is written, and if that fails, ``path``
        is what it was before. Raises OSError where it cannot be written, and ModelError where the .fmn file that this
        Model is from was changed in place (see :meth:`load`).
        """
        from . import fmn  # imported here: few programs write files

        fmn.save(self._engine.graph(), path)

    def with_head(
        self: Any,
        weights: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        labels: Sequence[Any] | str | os.PathLike[str] | None = None,
        activation: str | None = None,
    ) -> Model:
        """This network with another classifier on its :meth:`features`: a new Model, that shares the packed weights.

        ``weights``, ``bias``: (classes, features) and (classes,), as ``coef_`` and ``intercept_`` of a linear model of
        scikit-learn. Those of a binary classifier, (1, features), become two classes with the logits 0 and
        ``weights @ features + bias``, whose softmax is what ``LogisticRegression.predict_proba`` gives. Weights of
        shape (features,) make one number, as those of a regression are.
        ``labels``: the names of the classes, or a file of them, as in :meth:`load`; numbers become names, so that
        ``classes_`` can be given as it is. None for none.
        ``activation``: "softmax" for a network whose output are probabilities; None for logits. :meth:`classify` gives
        probabilities in either case.

        The head computes in float32, behind a quantised network too. :meth:`save` writes network and head to one file.
        Raises TypeError and ValueError for a head that does not fit.
        """
        graph = outputs.attach_head(self._engine.skeleton, weights, bias, activation)
        if isinstance(labels, (list, tuple, np.ndarray)):
            labels = [str(name) if isinstance(name, (int, np.integer)) else name for name in labels]
        graph = graph.replace(labels=arguments.check_labels(graph, labels))
        parameters = self._parameters + count_parameters(graph) - count_parameters(self._engine.skeleton)
        made: Model = type(self)(graph, self._requested_threads, parameters, base=self._engine)
        return made

    async def arun(self: Any, x: Any, **options: Any) -> Any:
        """:meth:`run` in a thread of asyncio's own, so that other tasks go on: ``await model.arun(img)``.

        Takes the options of :meth:`run`, gives and raises what that does. A task that is cancelled leaves at once; the
        run it had begun ends in its thread.
        """
        import asyncio  # 20 ms that a program without it need not spend

        return await asyncio.to_thread(self.run, x, **options)

    def map(
        self: Any,
        pictures: Iterable[Any],
        *,
        workers: int | None = None,
        batch: int = 1,
        ordered: bool = True,
        on_error: str = "report",
        progress: bool | Callable[[int, int], object] = False,
        size: int | tuple[int, int] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Iterator[MapResult]:
        """Many pictures, each decoded, resized and run by one of several threads: an iterator of MapResult.

        ``pictures``: anything that can be iterated, endless too, over paths, PIL images and uint8 arrays (h, w, 3).
        ``workers``: how many threads; each runs the network in one. Default: ``threads``.
        ``batch``: how many pictures a worker takes at once and runs together.
        ``ordered``: results come in the order of the pictures, or else as they are ready.
        ``on_error``: "report": a picture that cannot be read gives a result with its ``error``, and the others go on;
        "raise": the error is raised, after the results before it where they are ordered.
        ``progress``: True for a line on standard error, if that is a terminal; or what is called after every result
        with the pictures done and those of them that failed.
        ``size``, ``outputs``: as in :meth:`run`.

        At most ``4 * workers * batch`` pictures are under way, so memory does not grow with their number. Whoever stops
        before the end closes the iterator (``close()``, or by leaving it to the garbage collector): the workers then
        end with the picture at hand. An error of ``pictures`` itself is raised after the results of those before it.
        Raises TypeError and ValueError for wrong arguments, at once.
        """
        from . import streaming

        return streaming.start(
            self, pictures, workers=workers, batch=batch, ordered=ordered, on_error=on_error, progress=progress,
            size=size, outputs=outputs,
        )  # fmt: skip

    def _with_threads(self: Any, threads: int) -> Model:
        """The same Model, with all that it keeps, but this many threads a run."""
        other: Model = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._threads = threads
        return other

    def __reduce__(self: Any) -> tuple[Any, ...]:
        from . import origin

        return origin.reduce(self)

    def __copy__(self: Any) -> Model:
        made: Model = self  # it does not change
        return made

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Model:
        return self.__copy__()  # type: ignore[no-any-return]
