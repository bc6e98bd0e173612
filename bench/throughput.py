"""Pictures per second, decoding included: Model.map against a loop with Pillow and ONNX Runtime.

    python -m bench.throughput FOLDER MODEL... [--threads 2] [--rounds 5] [--out FILE]

FOLDER has JPEG pictures, MODEL is a .tflite or other model file; "MODEL:fp32" loads a quantised one in float32. Three
ways go round and round over all pictures, and the best round of each counts:

    map      model.map(paths, workers=THREADS)
    single   a loop of model.run(path), in one thread
    peer     a loop of Image.open, exif_transpose, convert, resize, crop, normalise, and ONNX Runtime with
             THREADS threads

ONNX Runtime gets the network in float32, with the weights dequantised where they are quantised. An .fmn file has its
sums fused into convolutions, which cannot be written for it: give the file it was made from. The exit status is 1 where
the classes of a network in float32 differ from the peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fastmobilenet import Model, importers
from fastmobilenet.image import resized

from . import machine
from .networks import deployed
from .peers.to_onnx import export

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def peer(path: str, threads: int) -> Callable[[Sequence[str]], list[int]]:
    """The loop that a user of Pillow and ONNX Runtime writes; paths -> classes."""
    import onnxruntime

    graph = deployed(importers.load(path))
    p, size = graph.preprocess, graph.input_size
    mean, std = (np.array(v, np.float32) for v in (p.mean, p.std))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(export(graph, size), options, providers=["CPUExecutionProvider"])

    def run(paths: Sequence[str]) -> list[int]:
        classes = []
        for path in paths:
            with Image.open(path) as image:
                picture = ImageOps.exif_transpose(image).convert("RGB")
            h, w = resized(picture.height, picture.width, *size, p)
            picture = picture.resize((w, h), FILTERS[p.interpolation])
            left, top = round((w - size[1]) / 2), round((h - size[0]) / 2)
            picture = picture.crop((left, top, left + size[1], top + size[0]))
            x = (np.asarray(picture, np.float32) - mean) / std
            y = session.run(None, {"x": np.ascontiguousarray(x.transpose(2, 0, 1))[None]})[0]
            classes.append(int(y.reshape(-1).argmax()))
        return classes

    return run


def measure(source: str, paths: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    file, _, precision = source.partition(":")
    options = {"precision": precision or None}
    model = Model.load(file, threads=threads, **options)  # type: ignore[arg-type]
    alone = Model.load(file, threads=1, **options)  # type: ignore[arg-type]

    def mapped(paths: Sequence[str]) -> list[int]:
        return [int(r.output.argmax()) for r in model.map(paths, workers=threads)]  # type: ignore[union-attr]

    def single(paths: Sequence[str]) -> list[int]:
        return [int(alone.run(path).argmax()) for path in paths]

    ways = {"map": mapped, "single": single, "peer": peer(file, threads)}
    classes = {name: way(paths) for name, way in ways.items()}  # this warms them up, too
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(paths)
            seconds[name].append(time.perf_counter() - start)
    rate = {name: len(paths) / min(times) for name, times in seconds.items()}
    same = sum(a == b for a, b in zip(classes["map"], classes["peer"], strict=True))
    assert classes["map"] == classes["single"]
    return {
        "model": os.path.basename(source),
        "pictures": len(paths),
        "threads": threads,
        "pictures_per_second": {name: round(value, 1) for name, value in rate.items()},
        "map_over_peer": round(rate["map"] / rate["peer"], 3),
        "map_over_threads_x_single": round(rate["map"] / (threads * rate["single"]), 3),
        "same_class_as_peer": same,
        "seconds": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.throughput", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args(argv)
    paths = sorted(str(p) for p in args.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    rows = [measure(source, paths, args.threads, args.rounds) for source in args.models]
    for row in rows:
        rate = row["pictures_per_second"]
        print(
            f"{row['model']}: map {rate['map']:.0f}/s, single thread {rate['single']:.0f}/s, Pillow + ONNX Runtime "
            f"{rate['peer']:.0f}/s; map / peer {row['map_over_peer']:.2f}, map / ({args.threads} x single) "
            f"{row['map_over_threads_x_single']:.2f}; same class {row['same_class_as_peer']} of {row['pictures']}"
        )
    if args.out is not None:
        command = machine.command_line("bench.throughput", list(argv if argv is not None else sys.argv[1:]))
        result = {"command": command, "machine": machine.describe(), "versions": machine.versions(), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    floats = [row for row in rows if row["model"].endswith(":fp32")]
    return 0 if all(row["same_class_as_peer"] == row["pictures"] for row in floats) else 1


if __name__ == "__main__":
    sys.exit(main())
