"""``fastmobilenet info``: what is in a model file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .terminal import add_arch_option, load_graph, picture_size, printable, table

if TYPE_CHECKING:
    from ..graph import Graph, Node

EPILOG = """\
examples:
  fastmobilenet info mobilenet_v2_1.0_224_quant.tflite
  fastmobilenet info mobilenet_v1 --size 192x160
  fastmobilenet info weights.safetensors --arch mobilenet_v2 --json

Shapes are height x width x channels of one picture. A MAC is one multiplication with its addition.
"""

#: Names of nodes are cut to this width in the table; --json has them whole.
NAME_WIDTH = 44


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="show the layers, shapes and costs of a model",
        description="Show the layers of a model with their shapes, MACs and parameters, and what it does to pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="FILE", help="a model file, timm/NAME of the hub, or an architecture")
    add_arch_option(parser)
    parser.add_argument("--size", type=picture_size, metavar="HxW", help="picture size (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    graph, from_file = load_graph(args.model, args.arch)
    facts = describe(graph, args.size or graph.input_size)
    facts = {"file": args.model if from_file else None, **facts}
    print(json.dumps(facts, indent=2) if args.json else "\n".join(lines(facts)))
    return 0


def describe(graph: Graph, size: tuple[int, int]) -> dict[str, Any]:
    """All that is shown, as plain data for JSON."""
    from ..graph import count_macs, count_parameters, infer_shapes, node_parameters
    from ..precision import of_graph, of_node

    shapes = infer_shapes(graph, 1, *size)
    return {
        "name": graph.name,
        "input": {"height": size[0], "width": size[1], "channels": graph.input_channels, "layout": graph.input_layout},
        "output": list(shapes[graph.output][1:]),
        "parameters": count_parameters(graph),
        "macs": sum(count_macs(node, shapes) for node in graph.nodes),
        "preprocess": {**asdict(graph.preprocess), "description": graph.preprocess.describe()},
        "precision": of_graph(graph),
        "detection": _detection(graph),
        "labels": None if graph.labels is None else len(graph.labels),
        "layers": [
            {
                "name": node.name,
                "op": node.op,
                "precision": of_node(node),
                "inputs": list(node.inputs),
                "output": list(shapes[node.name][1:]),
                "macs": count_macs(node, shapes),
                "parameters": node_parameters(node),
                **_details(node),
            }
            for node in graph.nodes
        ],
    }


def _detection(graph: Graph) -> dict[str, Any] | None:
    """How a detector makes boxes of its output; None for what is none."""
    from ..detection_head import head_of, plain_attributes

    head = head_of(graph)
    if head is None:
        return None
    attrs = plain_attributes(head.attributes())
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in attrs.items()}
    return {"anchors": len(head.anchors), **plain, "description": head.describe()}


def _details(node: Node) -> dict[str, Any]:
    """The attributes that say how a layer works; only those that it has."""
    from ..graph import is_depthwise, kernel_size

    details: dict[str, Any] = {}
    if node.op == "conv2d" or "kernel" in node.attrs:
        details["kernel"] = list(kernel_size(node))
    if node.op == "conv2d":
        details["depthwise"] = is_depthwise(node)
        details["groups"] = node.attrs.get("groups", 1)
    for key in ("stride", "dilation", "padding"):
        if key in node.attrs:
            value = node.attrs[key]
            details[key] = value if isinstance(value, str) else list(value)
    if "epsilon" in node.attrs:
        details["epsilon"] = node.attrs["epsilon"]
    if node.activation is not None:
        details["activation"] = str(node.activation)
    return details


def lines(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    source, layers = facts["input"], facts["layers"]
    shape = f"{source['height']}x{source['width']}x{source['channels']}"
    weights = "" if facts["file"] else " (architecture only, random weights)"
    labels = "none in the file" if facts["labels"] is None else str(facts["labels"])
    head = [
        ("model", printable(facts["name"]) + weights),
        ("input", f"{shape}, float32 arrays in {source['layout']}"),
        ("output", "x".join(map(str, facts["output"]))),
        *([("detection", facts["detection"]["description"])] if facts["detection"] else []),
        ("pictures", facts["preprocess"]["description"]),
        ("labels", labels),
        ("precision", facts["precision"]),
        ("layers", len(layers)),
        ("parameters", f"{facts['parameters']:,}"),
        ("MACs", f"{facts['macs']:,}"),
    ]
    rows: list[tuple[Any, ...]] = [("layer", "op", "precision", "output", "MACs", "parameters")]
    for layer in layers:
        output = "x".join(map(str, layer["output"]))
        macs, parameters = (f"{layer[key]:,}" if layer[key] else "" for key in ("macs", "parameters"))
        rows.append((_shorten(layer["name"]), _op(layer), layer["precision"], output, macs, parameters))
    return [*table(head, set()), "", *table(rows, {3, 4, 5})]


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else "..." + name[3 - NAME_WIDTH :]


def _op(layer: dict[str, Any]) -> str:
    """conv2d 3x3 /2 relu6: kernel, stride where it is not 1, activation."""
    words = ["depthwise" if layer.get("depthwise") else layer["op"]]
    if "kernel" in layer:
        words.append("x".join(map(str, layer["kernel"])))
    stride = layer.get("stride", [1, 1])
    if stride != [1, 1]:
        words.append("/" + ("x".join(map(str, stride)) if stride[0] != stride[1] else str(stride[0])))
    if layer.get("groups", 1) > 1 and not layer["depthwise"]:
        words.append(f"{layer['groups']} groups")
    if "activation" in layer and layer["op"] != "activation":
        words.append(f"+ {layer['activation']}")
    elif "activation" in layer:
        words = [layer["activation"]]
    return " ".join(words)
