"""Model: a network that is ready to run. Pictures or arrays in, float32 out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from . import _native, arguments, values
from . import labels as label_files
from .detection import Detecting, Detector
from .errors import ModelError
from .graph import Graph, count_parameters, infer_shapes
from .lower import Engine, default_threads
from .origin import Origin
from .outputs import Named, check_names, ends_in_softmax, softmax
from .packing import without_data
from .precision import describe as describe_precision
from .preprocess import Preprocess
from .quantizing import Quantizing
from .uses import Uses

if TYPE_CHECKING:
    from PIL import Image

    from .profile import Profile

#: One picture: a path, a PIL image, or uint8 pixels of shape (h, w, 3).
Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]"

#: What Model.run takes beside a Picture: several pictures, or a preprocessed array.
Pictures: TypeAlias = "list[Any] | tuple[Any, ...] | npt.NDArray[np.uint8] | npt.NDArray[np.float32]"

#: Pictures of a longer list are read and run in groups of this many, so that memory does not grow with the list.
GROUP = 64

#: Sizes of pictures that a Model remembers to fit.
SIZES = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class that the network sees in a picture; ``score`` is its probability, 0..1.

    ``label`` is the name of the class, or "class 7" where the model has no names.
    """

    label: str
    index: int
    score: float


class Model(Uses, Quantizing, Detecting):
    """A network with its weights packed for this CPU. Made by :meth:`load` or :meth:`from_graph`.

    A Model does not change after it was made. Any number of Python threads may use one at the same time, and processes
    that are forked. It can be pickled: origin.py says what the pickle holds.
    """

    def __init__(
        self, graph: Graph, threads: int | None, parameters: int | None = None, *, base: Engine | None = None
    ) -> None:
        # The weights live in the engine, packed; what is kept here are names, shapes and settings.
        self._graph = without_data(graph)
        self._parameters = count_parameters(graph) if parameters is None else parameters
        self._requested_threads = threads
        self._threads = default_threads() if threads is None else threads
        shell = self._graph

        @lru_cache(maxsize=SIZES)
        def output_at(h: int, w: int) -> tuple[int, int, int]:
            return infer_shapes(shell, 1, h, w)[shell.output][1:]

        self._output_at = output_at  # raises ModelError where a picture of h x w does not fit
        self._output = output_at(*graph.input_size)
        self._engine = Engine(graph, base=base)
        self._named = Named(self._engine)
        self._detector = Detector.of(self._engine)
        self._origin: Origin | None = None  # the file, where all came from one

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        precision: str | None = None,
        threads: int | None = None,
        arch: str | None = None,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
    ) -> Model:
        """Read a model file, or a trained network of the Hugging Face hub.

        ``source``: an .fmn, .onnx, .tflite, .keras, .h5, .safetensors or .pth file; or where there is no such file, a
        repository of timm, "timm/mobilenetv3_large_100.ra_in1k", perhaps with "@revision" (a branch, tag or commit), or
        a short name of one, "mobilenet_v2" (``fastmobilenet.hub.ALIASES``). It is fetched with huggingface_hub, which
        must be installed, once, and is then found in its cache, without a network too. "hf-hub:" before the name says
        that it is no path.
        Without one: the starter model that comes with the package, for photographs of ten classes (starter.py).
        ``precision``: None takes what the file holds: a quantised .tflite file runs on bytes, as it is; "fp32" has its
        weights dequantised, and computes in float32. "int8" refuses a file that is not quantised (:meth:`quantize`
        makes such a model).
        ``threads``: how many threads one call uses. Default: FASTMOBILENET_NUM_THREADS, then OMP_NUM_THREADS, then
        the physical cores that the affinity mask and the cgroup of this process allow.
        ``arch``: the architecture, for a file that holds weights only; ``fastmobilenet.models.available()``
        lists them.
        ``preprocess``: what to do with raw pixels, instead of what the file or the architecture says.
        ``labels``: class names, or the path of a text file with one name a line; ``()`` for none. Default: the
        names in the model file, else those in a file ``*labels*.txt`` in the same folder that has as many names
        as the network has classes (see :func:`fastmobilenet.labels.find`).

        Whatever becomes of the file afterwards, the model runs as before. If a quantised .fmn file is written to in
        place, not replaced, then :meth:`save`, :attr:`graph` and pickle raise ModelError: in_file.py says why.

        Raises FileNotFoundError, ModelError (a damaged or unsupported file), TypeError and ValueError.
        """
        arguments.check_precision(precision)
        arguments.check_threads(threads)
        arguments.check_preprocess(preprocess)
        if source is None:
            source = import_module(".starter", __package__).used()
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError(f"source must be the path of a model file, not {type(source).__name__}")
        from . import sources  # imported here: a program that makes its own Graph needs no readers

        path = os.fsdecode(source)
        graph, origin = sources.read(path, arch=arch, quantized=precision != "fp32")
        if precision == "int8" and not any("quant" in node.attrs for node in graph.nodes):
            raise ModelError(f"{path} holds a network of floats; load it with precision=None and call model.quantize()")
        own_labels = graph.labels
        if labels is None and graph.labels is None and origin.hub is None:
            classes = arguments.class_count(graph)
            if classes is not None:
                labels = label_files.find(path, classes)
        model = cls.from_graph(graph, threads=threads, preprocess=preprocess, labels=labels)
        del graph
        options: dict[str, Any] = {"precision": precision, "threads": threads, "arch": arch, "preprocess": preprocess}
        if model.labels != own_labels or model.labels is None:
            options["labels"] = model.labels or ()
        model._origin = origin.after(options)
        _native.release_free_memory()  # the file, and the weights as they were in it
        return model

    @classmethod
    def from_graph(
        cls,
        graph: Graph,
        *,
        threads: int | None = None,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
    ) -> Model:
        """Make a graph ready to run, for example one of ``fastmobilenet.models.build``. Options as in :meth:`load`."""
        threads = arguments.check_threads(threads)
        arguments.check_preprocess(preprocess)
        if not isinstance(graph, Graph):
            raise TypeError(f"graph must be a fastmobilenet.Graph, not {type(graph).__name__}")
        if preprocess is not None:
            graph = graph.replace(preprocess=preprocess)
        if labels is not None or graph.labels is not None:
            graph = graph.replace(labels=arguments.check_labels(graph, labels))
        return cls(graph, threads)

    # --- running -----------------------------------------------------------------------------------------

    @overload
    def run(
        self, x: Picture | Pictures, *, size: int | tuple[int, int] | None = None, outputs: None = None
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def run(
        self, x: Picture | Pictures, *, size: int | tuple[int, int] | None = None, outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]: ...

    def run(
        self,
        x: Picture | Pictures,
        *,
        size: int | tuple[int, int] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> npt.NDArray[np.float32] | dict[str, npt.NDArray[np.float32]]:
        """The output of the network for one picture, or for several.

        ``x`` is one of

        - a path, a PIL image, or a uint8 array (h, w, 3) of RGB pixels: resized, cropped and normalised as
          ``model.preprocess`` says. Pixels that already have the network's input size are only normalised.
        - a list or tuple of those, of any sizes, or a uint8 array (n, h, w, 3).
        - a float32 array that is already preprocessed, in the layout of the model file: (c, h, w) or
          (n, c, h, w) where ``model.graph.input_layout`` is "NCHW", (h, w, c) or (n, h, w, c) where it is
          "NHWC". Any height and width that the network allows; any strides, alignment and byte order.

        ``size``: run pictures at this size, one number or (height, width), instead of the model's own.
        ``outputs``: a list of names: "embedding" (see :meth:`features`), "logits", "probabilities", "output", of a
        detector "boxes", "logits" and "output", and the layers of ``model.graph``, each with its activation and the sum
        behind it; "block_12" is the last of "block_12/expand", "block_12/depthwise" and "block_12/project". Nothing
        behind them is computed. Outputs of the same height and width take one run together, others one each; they share
        the weights.

        Returns a new float32 array: (classes,) for one picture, (n, classes) for several. An output that is
        larger than one pixel keeps its height and width, in the layout of the model file. A detector gives a row for
        each anchor, the four numbers of its box and one for each class: (anchors, 4 + classes); see :meth:`detect`.
        With ``outputs`` a dict of name and such an array.

        Raises TypeError and ValueError that name what was given and what was expected, ModelError where the
        network does not allow the size, and OSError where a file cannot be read. ``x`` is never modified.
        """
        names = None if outputs is None else check_names(outputs)
        if names is not None:
            self._named.check(names)
        found = self._run_groups(x, size, names)
        return found if names is not None else found[""]

    def _run_groups(
        self, x: Any, size: int | tuple[int, int] | None, names: tuple[str, ...] | None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Name -> output; without names the model's own under ""."""
        x, size = self._accept(x, size)
        if not isinstance(x, (list, tuple)) and (not isinstance(x, np.ndarray) or x.ndim != 4):
            return self._run(x, size, names)
        # In groups: memory does not grow with what is read and resized, and Ctrl-C need not wait for all of them.
        parts = [self._run(x[i : i + GROUP], size, names, first=i) for i in range(0, len(x), GROUP) or (0,)]
        return parts[0] if len(parts) == 1 else {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def probabilities(
        self, x: Picture | Pictures, *, size: int | tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """The probability of every class: float32 (classes,) or (n, classes) with the sum 1.

        The output of :meth:`run` where the network itself ends in a softmax, else the softmax of it.
        Raises what :meth:`run` raises, and ValueError for a network that is no classifier.
        """
        if self.classes is None:
            what = "it is a detector; use detect()" if self._detector else f"its output is {self._output}; use run()"
            raise ValueError(f"{self.name} is no classifier: {what}")
        out = self.run(x, size=size)
        if out.ndim > 2:
            raise ValueError(f"at this size the output has the shape {out.shape}; classify pictures of {self._size}")
        return out if ends_in_softmax(self._graph) else softmax(out)

    @overload
    def classify(
        self, x: str | os.PathLike[str], top: int = 5, *, size: int | tuple[int, int] | None = None
    ) -> list[Prediction]: ...

    @overload
    def classify(
        self, x: list[Any] | tuple[Any, ...], top: int = 5, *, size: int | tuple[int, int] | None = None
    ) -> list[list[Prediction]]: ...

    @overload
    def classify(self, x: Any, top: int = 5, *, size: int | tuple[int, int] | None = None) -> Any: ...

    def classify(self, x: Any, top: int = 5, *, size: int | tuple[int, int] | None = None) -> Any:
        """The ``top`` most probable classes, most probable first: a list of Prediction, or for several pictures a
        list of such lists; all classes where there are fewer than ``top``. Takes what :meth:`run` takes and raises
        what :meth:`probabilities` raises, and TypeError and ValueError where ``top`` is no whole number from 1 on."""
        top = values.check_count("top", top)
        scores = self.probabilities(x, size=size)
        if scores.ndim == 1:
            return self._best(scores, top)
        return [self._best(row, top) for row in scores]

    def _best(self, scores: npt.NDArray[np.float32], top: int) -> list[Prediction]:
        order = np.argsort(-scores, kind="stable")[:top]  # stable: of equal scores the lower class goes first
        names = self._graph.labels
        return [Prediction(f"class {i}" if names is None else names[i], i, float(scores[i])) for i in map(int, order)]

    def profile(self, x: Picture | Pictures, *, size: int | tuple[int, int] | None = None, runs: int = 20) -> Profile:
        """Where the time of a run goes: for every layer its time, its share of the arithmetic peak and its bound.

        Takes what :meth:`run` takes; reading and resizing pictures is not part of the times. ``runs``: how many runs
        are measured, of which the fastest is shown. Print the result, or see :class:`fastmobilenet.profile.Profile`.
        Raises what :meth:`run` raises, ValueError where there is no picture, and TypeError and ValueError where
        ``runs`` is no whole number from 1 on.
        """
        from . import profile  # imported here: only those who measure need it

        runs = values.check_count("runs", runs)
        x, size = self._accept(x, size)
        batch, _ = self._batch(x, size)
        return profile.measure(self._engine, batch, threads=self._threads, runs=runs)

    def _accept(self, x: Any, size: int | tuple[int, int] | None) -> tuple[Any, tuple[int, int]]:
        """x, and the (height, width) at which it will run. Refuses what can be refused before files are read and
        memory is allocated, a size that the network does not fit among it."""
        if isinstance(x, np.ndarray):
            x = values.plain(x)
            if x.dtype != np.uint8:
                if size is not None:
                    raise ValueError("size applies to pictures; a float32 array has its size already")
                at = arguments.check_floats(x, self._graph)
                self._output_at(*at)
                return x, at
        from . import image  # imported here: Pillow is not needed for float arrays

        if not isinstance(x, (list, tuple)) and not image.is_picture(x):
            raise TypeError(f"expected {arguments.accepted(self._graph)}; got {image.describe(x)}")
        arguments.check_takes_pictures(self._graph)
        if isinstance(x, np.ndarray):
            image.check_array(x)
        elif isinstance(x, (list, tuple)):
            arguments.check_pictures(x)
        at = self._graph.input_size if size is None else values.check_size(size)
        self._output_at(*at)
        return x, at

    def _run(
        self, x: Any, size: tuple[int, int], names: tuple[str, ...] | None, *, first: int = 0
    ) -> dict[str, npt.NDArray[np.float32]]:
        batch, batched = self._batch(x, size, first=first)
        pixels = batch.dtype == np.uint8
        if names is None:
            found = {"": self._engine.run(batch, threads=self._threads, pixels=pixels)}
        else:
            found = self._named.run(batch, names, threads=self._threads, pixels=pixels)
        return {name: self._arrange(out, batched) for name, out in found.items()}

    def _batch(
        self, x: Any, size: tuple[int, int], *, first: int = 0
    ) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float32], bool]:
        """What the engine takes, uint8 pixels or a preprocessed float32 array, and whether x has a batch axis."""
        if isinstance(x, np.ndarray) and x.dtype != np.uint8:
            return arguments.float_batch(x)
        from . import image, linear

        if self._graph.preprocess.interpolation == "linear":
            return linear.to_batch(x, self._graph, size, first=first)
        return image.to_batch(x, self._graph.preprocess, size, first=first)

    def _arrange(self, out: npt.NDArray[np.float32], batched: bool) -> npt.NDArray[np.float32]:
        """(n, h, w, c) -> (n, c) for one pixel, else the model file's layout; no batch axis for one picture."""
        n, h, w, c = out.shape
        if h == w == 1:
            out = out.reshape(n, c)
        elif self._detector is not None and (h, w) == self._output[:2]:
            out = out.reshape(n, h, c)  # a row for each anchor
        elif self._graph.input_layout == "NCHW":
            out = np.ascontiguousarray(out.transpose(0, 3, 1, 2))
        return out if batched else out[0]

    # --- what it is --------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The network as data, as it runs: batch norm folded, activations fused. The arrays are new at every call."""
        return self._engine.graph()

    @property
    def name(self) -> str:
        return self._graph.name

    @property
    def preprocess(self) -> Preprocess:
        """What is done to raw pixels."""
        return self._graph.preprocess

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The class names, or None."""
        return self._graph.labels

    @property
    def classes(self) -> int | None:
        """The number of classes; None for a network whose output is larger than one pixel."""
        h, w, c = self._output
        return c if h == w == 1 else None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) to which pictures are brought."""
        return self._graph.input_size

    @property
    def threads(self) -> int:
        """How many threads one call uses at most."""
        return self._threads

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return self._engine.isa

    @property
    def _precision(self) -> str:
        return describe_precision(self._engine.skeleton)

    @property
    def _size(self) -> str:
        return "{}x{}".format(*self._graph.input_size)

    def __repr__(self) -> str:
        out = "x".join(map(str, self._output)) if self.classes is None else values.counted(self.classes, "class")
        if self._detector is not None:
            out = self._detector.head.describe()
        names = "" if self.labels is None else " with names"
        lines = [
            f"<fastmobilenet.Model {self.name}",
            f"  {self._size}x{self._graph.input_channels} -> {out}{names}, {self._parameters / 1e6:.2f} M parameters",
            f"  pictures: {self.preprocess.describe()}",
            f"  arrays: {arguments.float_shapes(self._graph)}",
            f"  {self._precision}, {values.counted(self._threads, 'thread')}, {self._engine.isas}>",
        ]
        return "\n".join(lines)
