"""Where ``fastmobilenet classify --out`` computes: in threads of this process, or in a cluster of Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .terminal import CommandError, why

if TYPE_CHECKING:
    import argparse

    from ..model import Model, Prediction

ENGINES = ("local", "ray")

#: A picture's row: its predictions, or why there are none.
Row = tuple[str, "Sequence[Prediction] | str"]

#: Pictures that a worker of Ray takes at once. Those of a worker that dies are classified again.
BATCH = 32


def rows(model: Model, paths: Sequence[str], args: argparse.Namespace) -> Iterator[Row]:
    """The rows of pictures, in their order."""
    return _ray(model, paths, args) if args.engine == "ray" else _local(model, paths, args)


def _local(model: Model, paths: Sequence[str], args: argparse.Namespace) -> Iterator[Row]:
    for row in model.map(paths, workers=args.workers, outputs=["probabilities"]):
        if row.error is None:
            yield row.source, model._best(row.output["probabilities"], args.top)  # type: ignore[call-overload, index]
        else:
            yield row.source, why(row.error, row.source)


def _ray(model: Model, paths: Sequence[str], args: argparse.Namespace) -> Iterator[Row]:
    """The rows come to this process, which alone writes results: a worker that dies loses none and doubles none."""
    try:
        import pyarrow as pa
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError(f"--engine ray needs Ray: pip install 'fastmobilenet[ray]' ({error})") from None
    from ..distributed import _FileMapper
    from ..model import Prediction

    if not paths:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        threads = args.threads or 1
        workers = args.workers or max(int(ray.cluster_resources().get("CPU", 1)) // threads, 1)
        workers = min(workers, -(-len(paths) // BATCH))
        names = [os.fsencode(os.path.abspath(path)) for path in paths]
        blocks = [pa.table({"image": names[i : i + BATCH]}) for i in range(0, len(names), BATCH)]
        source = args.model if model._origin is None or model._origin.hub is None else model._origin.hub
        options: dict[str, Any] = {"column": "image", "keep": [], "top": args.top, "arch": args.arch}
        if args.labels is not None:
            options["labels"] = model.labels
        data = ray.data.from_arrow(blocks).map_batches(
            _FileMapper,
            fn_constructor_args=[source],
            fn_constructor_kwargs=options,
            batch_size=None,  # a block
            batch_format="pyarrow",
            num_cpus=threads,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        given = iter(paths)
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                best = zip(row["labels"], row["indices"], row["scores"], strict=True)
                yield next(given), row["error"] or [Prediction(*values) for values in best]
        if next(given, None) is not None:
            raise CommandError("Ray gave fewer rows than there are pictures: run the command again for the others")
    finally:
        if started:
            ray.shutdown()
