"""The networks of a race and their input: ours, with random weights, so that all frameworks compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastmobilenet import models, passes, quantize
from fastmobilenet.graph import Graph, Node, Shape, count_macs, count_parameters, infer_shapes
from fastmobilenet.lower import Engine

#: What `bench.race --family` runs: networks beyond V1 and V2 that people use for their speed.
FAMILY = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "mobilenetv4_conv_small",
)

#: What `bench.race --precision int8` runs.
INT8 = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")

CALIBRATION_PICTURES = 8

#: The node of a network of one node that makes a vector for it.
MEANS = "means"


def build(arch: str, width: float | None = None, size: int = 224, seed: int = 0) -> Graph:
    """`models.build(arch)` for pictures of size x size, with batch normalisation and activations folded into
    the convolutions, as every deployed file has them. All frameworks get this Graph."""
    graph = models.build(arch, width=width, seed=seed, input_size=(size, size))
    return deployed(graph)


def deployed(graph: Graph) -> Graph:
    """The graph as converters write it: no batch normalisation, no activation apart that can be fused."""
    return passes.fuse_activation(passes.fold_batch_norm(graph))


def picture(graph: Graph, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A network input of shape (1, h, w, c), float32: smooth shapes and fine noise in 0..255, normalised.

    No value lies near the denormals: with the usual means, (pixel - mean) / std is never below 1e-3 in magnitude.
    """
    rng = np.random.default_rng(seed)
    h, w = size
    c = graph.input_channels
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    pixels = np.full((h, w, c), 128.0)
    for octave in (1, 2, 4, 8):
        for channel in range(c):
            fy, fx, phase = rng.uniform(0.5, 1.5, 3) * (octave, octave, 2 * np.pi)
            pixels[:, :, channel] += 60 / octave * np.cos(2 * np.pi * (fy * y + fx * x) + phase)
    pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).round()
    mean, std = (graph.preprocess.mean, graph.preprocess.std) if c == 3 else (127.5, 127.5)
    return ((pixels - mean) / std).astype(np.float32)[None]


def calibration(graph: Graph, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Pictures that set the ranges of a quantised network: (n, h, w, c), none of them `picture(graph, size, seed)`."""
    return np.concatenate([picture(graph, size, seed + i) for i in range(1, 1 + CALIBRATION_PICTURES)])


def quantized(graph: Graph, pictures: np.ndarray) -> Graph:
    """The network of bytes, as `Model.quantize` makes it of a network of floats."""
    size = (pictures.shape[1], pictures.shape[2])
    whole = Engine(graph).graph().replace(input_layout="NHWC")
    result, _ = quantize.quantize(whole, pictures, size, quantize.Options(), threads=1)
    return result


def one_node(node: Node, shapes: list[Shape]) -> Graph:
    """A network of one node alone; `shapes` are those of its inputs (n, h, w, c).

    A Graph has one input. So a sum or a product of two maps has it twice, and one of a map and a vector (the end of
    squeeze-and-excite) has the map and its means. A convolution of one pixel reads means too: behind a global pool
    runtimes have other kernels for it. Raises ValueError for other ops with two inputs.
    """
    if len(node.inputs) > 1 and node.op not in ("add", "mul"):
        raise ValueError(f"node {node.name!r}: a network of one node has one input, {node.op} here has two")
    _, h, w, c = shapes[0]
    nodes = [Node("picture", "input")]
    inputs = (nodes[0].name,) * len(node.inputs)
    vector = shapes[-1] != shapes[0]
    if vector or (node.op == "conv2d" and h * w == 1):
        nodes.append(Node(MEANS, "global_avg_pool", inputs[:1]))
        inputs = (inputs[0], MEANS) if vector else (MEANS,)
    alone = replace(node, name="layer", inputs=inputs)
    return Graph((*nodes, alone), alone.name, input_size=(h, w), input_channels=c, name=node.name)


def total_macs(graph: Graph, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one picture."""
    shapes = infer_shapes(graph, 1, *size)
    return sum(count_macs(node, shapes) for node in graph.nodes)


def total_parameters(arch: str, width: float | None = None) -> int:
    """Trainable values, with gamma and beta of batch normalisation, as papers and libraries count them."""
    return count_parameters(models.build(arch, width=width, weights=models.skeleton))
