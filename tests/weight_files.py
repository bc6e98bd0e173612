"""Weights for the tests: .safetensors files written by hand, state dicts under the names of torchvision and timm, and
networks of these libraries."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fastmobilenet import models
from fastmobilenet.graph import Graph
from fastmobilenet.importers._namings import Naming
from fastmobilenet.importers._plan_names import timm

from .peers import import_torchvision

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def pack(header: object, data: bytes = b"") -> bytes:
    """A .safetensors file with any header: an object to be written as JSON, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks, position = [], 0
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [position, position + len(raw)]
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        chunks.append(raw)
        position += len(raw)
    return pack(header, b"".join(chunks))


def state_of(graph: Graph, arch: str, naming: Naming, width: float | None = None) -> dict[str, np.ndarray]:
    """The parameters of a graph as a library would save them, with its batch norm counters."""
    names = {layer: (conv, bn) for layer, conv, bn in naming(models.find(arch).plan(width))}
    state: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        p = node.params
        conv, bn = names.get(node.name.removesuffix("/bn"), ("", ""))
        if node.op == "batch_norm":
            state |= {f"{bn}.weight": p["gamma"], f"{bn}.bias": p["beta"]}
            state |= {f"{bn}.running_mean": p["mean"], f"{bn}.running_var": p["variance"]}
            state[f"{bn}.num_batches_tracked"] = np.array(3)
        elif "weight" in p:
            weight = p["weight"]
            if node.name == "hidden" and naming is timm:
                weight = weight[:, None, None, :]  # a convolution there
            if weight.ndim == 4:
                weight = np.ascontiguousarray(weight.transpose(0, 3, 1, 2))
            state |= {f"{conv}.weight": weight} | ({f"{conv}.bias": p["bias"]} if "bias" in p else {})
    return state


def torch_network(arch: str) -> Any:
    """torchvision's network of this name, or else timm's, with random weights, in eval mode.

    Skips the test where the libraries are missing.
    """
    torch = pytest.importorskip("torch")
    torchvision, others = import_torchvision(), pytest.importorskip("timm")
    torch.manual_seed(1)
    return with_statistics(getattr(torchvision.models, arch, functools.partial(others.create_model, arch))())


def with_statistics(module: Any) -> Any:
    """The module in eval mode, with the batch norm statistics of random pictures.

    With momentum 1 they are those of the batch alone. A rest of the initial variance of 1 would be far larger than
    what torchvision's initial weights give, and all pictures would have the same logits.
    """
    import torch

    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
        torch.nn.init.uniform_(norm.weight, 0.7, 1.3)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    module.train()
    with torch.no_grad():
        module(torch.randn(8, 3, 64, 64))
    return module.eval()
