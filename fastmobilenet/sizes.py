"""How large the values of a network are: the mean squares of the channels of its tensors, for one picture.

A network's weights alone do not say that, so it is run once. The picture has smooth shapes, some noise and few pixels:
what the layers of a trained network make of it is about as large as what they make of a photograph (0.77 to 1.75 times,
for four such networks and their variants with ReLU; photographs among each other: 0.54 to 1.50). It is always the same,
so that what follows from the sizes depends on the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from .errors import ModelError
from .graph import MAX_INPUTS, Graph, Node, infer_shapes

#: Height and width of the picture, unless the network is made for smaller ones, or needs larger ones.
SIZE = 64

#: (graph, picture (1, h, w, c), its layout) -> output (1, 1, 1, c)
Run = Callable[[Graph, np.ndarray, str], np.ndarray]


def mean_squares(graph: Graph, names: Collection[str], run: Run, whole: Graph) -> dict[str, np.ndarray]:
    """Tensor -> mean square of each channel (c,), float32; for all ``names``, or for none if the graph does not take
    the picture. Its size is one that ``whole`` takes, of which the graph is a part or all: small, or ``input_size``.
    What overflows is infinite or NaN."""
    result: dict[str, np.ndarray] = {}
    h, w = _picture_size(whole)
    left = list(names)
    while left:
        some, left = left[:MAX_INPUTS], left[MAX_INPUTS:]
        measuring = _with_mean_squares(graph, some)
        try:
            shapes = infer_shapes(measuring, 1, h, w)
        except ModelError:
            return {}
        c = graph.input_channels
        values = run(measuring, picture(h, w, c), "pixels" if c == 3 else "NHWC").ravel()
        ends = np.cumsum([shapes[name][3] for name in some])
        result.update(zip(some, np.split(values, ends[:-1]), strict=True))
    return result


def _with_mean_squares(graph: Graph, names: Collection[str]) -> Graph:
    """The nodes that the tensors need, and the mean squares of all, one behind the other, as the output."""
    needed = set(names)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = [n for n in graph.nodes if n.name in needed or n.op == "input"]
    taken = {n.name for n in graph.nodes}

    def add(op: str, *inputs: str) -> str:
        name = f"size/{len(nodes)}"
        while name in taken:
            name += "_"
        taken.add(name)
        nodes.append(Node(name, op, inputs))
        return name

    means = [add("global_avg_pool", add("mul", name, name)) for name in names]
    return graph.replace(output=add("concat", *means), nodes=tuple(nodes))


def _picture_size(graph: Graph) -> tuple[int, int]:
    h, w = graph.input_size
    small = min(h, SIZE), min(w, SIZE)
    try:
        infer_shapes(graph, 1, *small)
    except ModelError:
        return h, w
    return small


def picture(h: int, w: int, c: int) -> np.ndarray:
    """(1, h, w, c): waves of several lengths and fine noise. Pixels, uint8, for three channels; otherwise floats of
    mean 0 and size about 1, as networks with other inputs get nothing but what they are given."""
    y, x = np.mgrid[0:h, 0:w] / SIZE
    pixels = np.full((h, w, c), 128.0)
    for octave in (1, 2, 4, 8):
        for channel in range(c):
            phase = 2.4 * (octave + 5 * channel)
            pixels[:, :, channel] += (
                60 / octave * np.cos(2 * np.pi * octave * (y * np.cos(phase) + x * np.sin(phase)) + phase)
            )
    noise = np.arange(h * w * c, dtype=np.uint32) * np.uint32(2654435761)
    noise = (noise ^ noise >> np.uint32(15)) * np.uint32(2246822519) >> np.uint32(24)
    pixels = np.clip(pixels + (noise.reshape(h, w, c) - 127.5) / 9, 0, 255)
    return pixels.astype(np.uint8)[None] if c == 3 else ((pixels - 128) / 50).astype(np.float32)[None]
