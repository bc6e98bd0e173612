"""Many pictures on many machines: what Ray's ``Dataset.map_batches`` and Spark's ``DataFrame.mapInPandas`` call.

>>> import ray                                                               # doctest: +SKIP
>>> from fastmobilenet.distributed import RayMapper                          # doctest: +SKIP
>>> pictures = ray.data.read_binary_files("s3://...", include_paths=True)    # doctest: +SKIP
>>> rows = pictures.map_batches(                                             # doctest: +SKIP
...     RayMapper, fn_constructor_args=["m.fmn"], fn_constructor_kwargs={"column": "bytes"},
...     batch_size=32, num_cpus=2, compute=ray.data.ActorPoolStrategy(size=8))

>>> from fastmobilenet.distributed import SparkMapper                        # doctest: +SKIP
>>> pictures = spark.read.format("binaryFile").load("hdfs://...")            # doctest: +SKIP
>>> rows = SparkMapper("m.fmn", column="content").map(pictures)              # doctest: +SKIP

Both give a row for every picture: the columns it came with, and "error" (text, or null), "labels", "indices" and
"scores" (lists, of the ``top`` classes, most probable first); or, with ``outputs``, a list of float32 for each of them.
A picture that cannot be read has an "error", and stops nothing. Rows are those of one machine, bit for bit.

A process loads a model once, whatever the number of tasks that it runs, and uses as many threads as it owns CPUs: in
Ray ``num_cpus`` of the actor, in Spark ``spark.task.cpus``. Pictures are paths, which all workers must see, the content
of files, or, in Ray, uint8 arrays (h, w, 3).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import values
from .model import Model
from .outputs import check_names

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

#: Models that a process keeps, the oldest goes first: what was given to load each -> Model.
_models: dict[tuple[Any, ...], Model] = {}
KEPT = 4

_CLASSES = ("labels", "indices", "scores")


class _Mapper:
    """What both have in common: a batch of pictures -> columns of results.

    model: the path of a model file that all workers see, a name of the Hugging Face hub, or a Model; one that was made
        from a file is sent as its path and hash, another one with its weights.
    column: of the pictures.
    keep: columns to be passed on; None for all but that of pictures that are no paths.
    top: classes of a picture.
    outputs: outputs by name instead of classes, see ``Model.run``; what is larger than a pixel is flattened.
    size: run pictures at this size.
    threads: of a worker; None for the CPUs that it owns.
    options: of ``Model.load``, where ``model`` is no Model: arch, labels, precision, preprocess.

    Nothing is loaded before the first batch. Raises TypeError and ValueError for wrong arguments.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        *,
        column: str = "image",
        keep: Sequence[str] | None = None,
        top: int = 5,
        outputs: Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        unknown = set(options) - {"arch", "labels", "precision", "preprocess"}
        if unknown:
            raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
        if isinstance(model, Model):
            if options:
                raise ValueError(f"{', '.join(options)} is for the path of a model file, and model is a Model")
            import pickle

            self._source: str | bytes = pickle.dumps(model)
        elif isinstance(model, (str, os.PathLike)):
            from . import hub

            path = os.fsdecode(model)
            self._source = path if hub.parse(path) is not None else os.path.abspath(path)
        else:
            raise TypeError(f"model must be a Model or the path of a model file, not {type(model).__name__}")
        self._options: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        labels = options.get("labels")
        if isinstance(labels, (str, os.PathLike)):
            self._options["labels"] = os.path.abspath(os.fsdecode(labels))
        elif labels is not None:
            self._options["labels"] = tuple(labels)
        self._column = column
        self._keep = None if keep is None else list(keep)
        self._top = values.check_count("top", top)
        self._outputs = None if outputs is None else check_names(outputs)
        self._size = None if size is None else values.check_size(size)
        self._threads = threads

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are added."""
        return ("error", *(_CLASSES if self._outputs is None else self._outputs))

    def _model(self) -> Model:
        """The Model, loaded at the first call in this process."""
        key = (self._source, *sorted(self._options.items(), key=lambda item: item[0]))
        model = _models.get(key)
        if model is None:
            if isinstance(self._source, bytes):
                import pickle

                model = pickle.loads(self._source)
                assert isinstance(model, Model)
            else:
                model = Model.load(self._source, **self._options)
            _models[key] = model
            for oldest in list(_models)[:-KEPT]:
                _models.pop(oldest, None)
        return model

    def _columns(self, pictures: Sequence[Any], threads: int) -> dict[str, list[Any]]:
        """The results of pictures, by column."""
        from .cli.terminal import why

        model = self._model()
        if self._outputs is None and model.classes is None:
            raise ValueError(f"{model.name} is no classifier; say with outputs=[...] what to compute")
        names = ("probabilities",) if self._outputs is None else self._outputs
        found: dict[str, list[Any]] = {name: [] for name in self.columns}
        rows = model.map(map(_picture, pictures), workers=threads, size=self._size, outputs=names)
        for picture, row in zip(pictures, rows, strict=True):
            about = picture if isinstance(picture, str) else None
            found["error"].append(None if row.error is None else why(row.error, about))
            if self._outputs is not None:
                for name in self._outputs:
                    found[name].append([] if row.output is None else row.output[name].reshape(-1))  # type: ignore[call-overload]
                continue
            best = [] if row.output is None else model._best(row.output["probabilities"], self._top)  # type: ignore[call-overload]
            found["labels"].append([p.label for p in best])
            found["indices"].append([p.index for p in best])
            found["scores"].append([p.score for p in best])
        return found


def _picture(value: Any) -> Any:
    """What a column holds, as ``Model.map`` takes it."""
    from .image import Encoded

    if isinstance(value, (bytes, bytearray, memoryview)):
        return Encoded(bytes(value))
    return str(value) if isinstance(value, np.str_) else value


class RayMapper(_Mapper):
    """For ``ray.data.Dataset.map_batches``: the class itself, with the arguments of its constructor in
    ``fn_constructor_args`` and ``fn_constructor_kwargs``. See :class:`_Mapper` for these.

    Batches of NumPy arrays, the default, pandas or pyarrow; what is returned is a pyarrow.Table.
    """

    def __call__(self, batch: Mapping[str, Any] | pd.DataFrame | pa.Table) -> pa.Table:
        import pyarrow as pa

        names = list(getattr(batch, "column_names", None) or batch)
        if self._column not in names:
            raise ValueError(f"there is no column {self._column!r}; there are {', '.join(map(str, names))}")
        pictures = self._pictures(_list(batch[self._column]))
        found = self._columns(pictures, self._threads or _ray_cpus())
        keep = self._keep
        if keep is None:
            paths = all(isinstance(picture, str) for picture in pictures)
            keep = [name for name in names if name != self._column or paths]
        table = {name: batch[name] for name in keep}
        arrays = {k: v if isinstance(v, (pa.Array, pa.ChunkedArray)) else pa.array(_list(v)) for k, v in table.items()}
        types = {"error": pa.string(), "labels": pa.list_(pa.string()), "indices": pa.list_(pa.int32())}
        for name, column in found.items():
            arrays[name] = pa.array(column, types.get(name, pa.list_(pa.float32())))
        return pa.table(arrays)

    def _pictures(self, column: list[Any]) -> list[Any]:
        return column


class _FileMapper(RayMapper):
    """Pictures are the names of files in bytes, for ``fastmobilenet classify``: not every name is in UTF-8."""

    def _pictures(self, column: list[Any]) -> list[Any]:
        return [os.fsdecode(name) for name in column]


class SparkMapper(_Mapper):
    """For Spark: ``SparkMapper(model, column="content").map(df)``, which is
    ``df.mapInPandas(mapper, mapper.schema(df))``. See :class:`_Mapper` for the arguments.
    """

    def map(self, df: DataFrame) -> DataFrame:
        """The DataFrame of the results."""
        return df.mapInPandas(self, self.schema(df))

    def schema(self, df: DataFrame) -> StructType:
        """What :meth:`__call__` gives for batches of this DataFrame."""
        from pyspark.sql import types as t

        kept = self._kept(df.columns, isinstance(df.schema[self._column].dataType, t.StringType))
        fields = [df.schema[name] for name in kept]
        kinds: dict[str, t.DataType] = {
            "error": t.StringType(), "labels": t.ArrayType(t.StringType()), "indices": t.ArrayType(t.IntegerType())
        }  # fmt: skip
        fields += [t.StructField(name, kinds.get(name, t.ArrayType(t.FloatType()))) for name in self.columns]
        return t.StructType(fields)

    def _kept(self, columns: Sequence[str], paths: bool) -> list[str]:
        if self._column not in columns:
            raise ValueError(f"there is no column {self._column!r}; there are {', '.join(columns)}")
        return [name for name in columns if name != self._column or paths] if self._keep is None else self._keep

    def __call__(self, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import pandas as pd

        threads = self._threads or _spark_cpus()
        for batch in batches:
            pictures = list(batch[self._column])
            paths = all(isinstance(picture, str) for picture in pictures)
            kept = {name: batch[name].reset_index(drop=True) for name in self._kept(list(batch.columns), paths)}
            found = self._columns(pictures, threads)
            yield pd.DataFrame({**kept, **{name: pd.Series(column, dtype=object) for name, column in found.items()}})


def _list(column: Any) -> list[Any]:
    """The values of a column: of strings as Python's own, of pictures as arrays."""
    if hasattr(column, "to_pylist"):
        return list(column.to_pylist())
    if isinstance(column, np.ndarray) and column.ndim > 1:
        return list(column)
    return list(column.tolist())


# --- what a worker owns -----------------------------------------------------------------------------------


def _ray_cpus() -> int:
    """The CPUs of this actor or task of Ray; outside of one, the threads that a Model has by default."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.worker.mode == ray.WORKER_MODE:
            return max(int(context.get_assigned_resources().get("CPU", 1)), 1)
    return _own()


def _spark_cpus() -> int:
    """The CPUs of this task of Spark; outside of one, the threads that a Model has by default."""
    if "pyspark" in sys.modules:
        from pyspark import TaskContext

        context = TaskContext.get()
        if context is not None:
            return max(int(context.cpus()), 1)
    return _own()


def _own() -> int:
    from .lower import default_threads

    return default_threads()
