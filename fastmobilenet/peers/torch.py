"""PyTorch, for files of weights: the network of torchvision or timm into which they fit."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from .. import models
from ..detection_head import head_of
from ..graph import Graph, Node, infer_shapes
from ..importers._matching import best_match
from ..importers.state_dict import PREFIXES, WRAPPERS
from . import PeerError, failures_of, title

#: What decides which layer of the module a node is: size and hash of each of its parameters, in the Graph's layout.
Key = tuple[tuple[int, bytes], ...]


class TorchPeer:
    """Layers of the module are found by their parameters, not by their names: those are other ones in the Graph."""

    rounds = False

    def __init__(self, path: str, graph: Graph, arch: str) -> None:
        import torch

        self.name = title("PyTorch", "torch")
        self._torch, self._path, self._graph = torch, path, graph
        with failures_of(self.name, path):
            state = _state(torch, path)
            self._detector = head_of(graph)
            classes = infer_shapes(graph, 1, *graph.input_size)[graph.output][3]
            if self._detector is not None:
                classes = self._detector.classes
            name, module = _network(state, arch, classes)
        self.name = f"{self.name} ({name})"
        self._module = module.eval()

    def output(self, x: np.ndarray) -> np.ndarray:
        with failures_of(self.name, self._path), self._torch.inference_mode():
            pictures = self._torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
            if self._detector is None:
                y: np.ndarray = self._module(pictures).numpy()
                return y
            # What comes before anchors: numbers of boxes and of classes, a row for each anchor.
            heads = self._module.head(list(self._module.backbone(pictures).values()))
            return np.concatenate([heads["bbox_regression"].numpy(), heads["cls_logits"].numpy()], axis=2)

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs: dict[Any, np.ndarray] = {}  # in the order of execution

        def keep(module: Any, inputs: Any, output: Any) -> None:
            if module not in outputs:  # copied: what follows may write over it
                outputs[module] = output.detach().clone().numpy()

        layers = [m for m in self._module.modules() if _key_of_module(m)]
        hooks = [m.register_forward_hook(keep) for m in layers]
        try:
            self.output(x)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for node, module in _pairs(self._graph, list(outputs)):
            place = _end_of(self._graph, node) if _goes_on(module) else node
            if place is not None:
                found[place.name] = outputs[module]
        return found


# --- the module -------------------------------------------------------------------------------------------


def _state(torch: Any, path: str) -> dict[str, Any]:
    """The tensors of a file, read by PyTorch's own libraries."""
    state: Any
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for _ in WRAPPERS:
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), state)
    tensors: dict[str, Any] = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _network(state: Mapping[str, Any], arch: str, classes: int) -> tuple[str, Any]:
    """The first network that the state fits, and what it is called."""
    import torch

    problem = "neither torchvision nor timm has it"
    for name, make in _candidates(state, arch, classes):
        try:
            with torch.device("meta"):  # names and shapes only
                module = make()
        except (ValueError, TypeError, RuntimeError, AttributeError):
            continue  # no such network, or not of this width
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        given = {key: value.shape for key, value in state.items()}
        needed = {key: shape for key, shape in shapes.items() if not _is_dispensable(key)}
        if any(given.get(key) != shape for key, shape in needed.items()):
            problem = f"the tensors do not fit {name}"
            continue
        weights = {key: value.float() for key, value in state.items() if key in shapes}
        module.load_state_dict(weights, strict=False, assign=True)
        return name, module
    raise PeerError(f"arch {arch!r}: {problem}")


def _is_dispensable(key: str) -> bool:
    """Counters of the training, and heads that only training needs."""
    return key.endswith("num_batches_tracked") or key.startswith(("aux1.", "aux2."))


def _candidates(state: Mapping[str, Any], arch: str, classes: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Networks of the libraries that the arch may be, the likeliest first. Raises ImportError where there is neither
    library."""
    libraries: list[tuple[str, Callable[..., Any]]] = []
    errors = []
    try:
        import torchvision

        libraries.append(("torchvision", torchvision.models.get_model))
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another PyTorch
        errors.append(error)
    try:
        import timm

        libraries.append(("timm", timm.create_model))
    except (ImportError, RuntimeError) as error:
        errors.append(error)
    if not libraries:
        raise ImportError(f"torchvision and timm cannot be imported ({errors[0]})")
    entry = models.find(arch)
    width = best_match(entry, state, None, classes).width
    if entry.width is None and width != 1:
        for library, create in libraries:
            yield f"{library}'s {arch} x{width:g}", partial(create, arch, num_classes=classes, width_mult=width)
    family = [name for name in models.available() if models.find(name).family is entry.family and name != arch]
    # torchvision would fetch trained weights for the backbone of a detector.
    options: dict[str, Any] = {"weights_backbone": None} if entry.family is models.ssd else {}
    for name in (arch, *family):
        for library, create in libraries:
            yield f"{library}'s {name}", partial(create, name, num_classes=classes, **options)


# --- which layer is which node ----------------------------------------------------------------------------


def _key_of_module(module: Any) -> Key:
    """() for what is no convolution, dense layer or batch norm."""
    import torch

    if isinstance(module, torch.nn.BatchNorm2d):
        tensors = (module.weight, module.bias, module.running_mean, module.running_var)
        return tuple(_print(t.detach().numpy()) for t in tensors if t is not None)
    if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
        weight = module.weight.detach().numpy()
        return (_print(weight.transpose(0, 2, 3, 1) if weight.ndim == 4 else weight),)
    return ()


def _key_of_node(node: Node) -> Key:
    if node.op == "batch_norm":
        return tuple(_print(node.params[key]) for key in ("gamma", "beta", "mean", "variance"))
    if node.op in ("conv2d", "dense"):
        return (_print(node.params["weight"]),)
    return ()


def _print(array: np.ndarray) -> tuple[int, bytes]:
    """Size and hash of the values as float32."""
    return array.size, hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).digest()


def _pairs(graph: Graph, layers: list[Any]) -> list[tuple[Node, Any]]:
    """Nodes with the layers that have the same parameters, bit for bit; and what is left over, in the order of
    execution, where it is of one kind and size."""
    nodes = {n.name: _key_of_node(n) for n in graph.nodes}
    keys = {layer: _key_of_module(layer) for layer in layers}
    once = {key for key, count in Counter(nodes.values()).items() if key and count == 1}
    once &= {key for key, count in Counter(keys.values()).items() if count == 1}
    by_key = {key: layer for layer, key in keys.items() if key in once}
    pairs = {name: by_key[key] for name, key in nodes.items() if key in once}
    left_nodes, left_layers = defaultdict(list), defaultdict(list)
    for name, key in nodes.items():
        if key and name not in pairs:
            left_nodes[tuple(size for size, _ in key)].append(name)
    for layer, key in keys.items():
        if key not in once:
            left_layers[tuple(size for size, _ in key)].append(layer)
    for sizes, names in left_nodes.items():
        if len(names) == len(left_layers[sizes]):
            pairs.update(zip(names, left_layers[sizes], strict=True))
    return [(node, pairs[node.name]) for node in graph.nodes if node.name in pairs]


def _goes_on(module: Any) -> bool:
    """Whether a batch norm applies the activation behind it too, as timm's BatchNormAct2d does."""
    import torch

    inner: Iterable[Any] = module.children()
    return any(not isinstance(m, torch.nn.Identity) for m in inner)


def _end_of(graph: Graph, node: Node) -> Node | None:
    """The activation that alone reads the node."""
    readers = graph.consumers()[node.name]
    return readers[0] if len(readers) == 1 and readers[0].op == "activation" else None
