"""Named arrays under torchvision's or timm's names -> Graph.

A state dict says nothing about the network but the names and shapes of its tensors. ``arch`` says the rest: the
skeleton of that network is built, and each of its parameters is looked up under the name that the library gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import models
from ..errors import ModelError
from ..graph import Graph, Node
from ._matching import BATCH_NORM, Wanted, advice, best_match
from ._text import quote

__all__ = ["BATCH_NORM", "to_graph"]

#: Keys under which training programs keep the state dict in a checkpoint.
WRAPPERS = ("state_dict", "model", "model_state_dict")
#: Prefixes of all names that DataParallel, torch.compile and training programs add.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Not needed to run a network.
IGNORED = ("num_batches_tracked",)

#: TensorFlow's networks that are also trained in PyTorch, with its conventions: symmetric padding, and 1e-5 as epsilon.
TRAINED_IN_PYTORCH = ("mobilenet_v1",)


def to_graph(
    state: Mapping[str, Any],
    *,
    arch: str | None,
    name: str = "the state dict",
    width: float | None = None,
    classes: int | None = None,
    padding: str | None = None,
    epsilon: float | None = None,
) -> Graph:
    """The network with the weights of a state dict.

    state: name -> array or torch tensor, of floats of any size; or a checkpoint that holds this under one of WRAPPERS.
    arch: a name of models.available().
    name: of the file, for messages.
    width, classes: read from the shapes where None.
    padding, epsilon: the conventions of ``arch`` where None; those of TRAINED_IN_PYTORCH have PyTorch's here.

    Raises ModelError where arch is missing or does not fit (it names the first tensor that does not, and the archs
    that fit), and for weights that are no finite floats.
    """
    tensors = _unwrap(state, name)
    if arch is None:
        raise ModelError(
            f"{name} holds weights only; say with arch= of which network. {advice(tensors, None, width, classes)}"
        )
    entry = models.find(arch)
    match = best_match(entry, tensors, width, classes)
    if match.problem:
        raise ModelError(f"{name} does not fit arch {arch!r}: {match.problem}. {advice(tensors, arch, width, classes)}")

    def weights(node: Node, key: str) -> np.ndarray:
        wanted = match.wanted[node.name, key]
        return _to_float(tensors[wanted.name], wanted, name).reshape(node.params[key].shape)

    if arch in TRAINED_IN_PYTORCH:
        padding, epsilon = padding or "symmetric", 1e-5 if epsilon is None else epsilon
    return models.build(
        arch, width=match.width, classes=match.classes, padding=padding, epsilon=epsilon, weights=weights
    )


# --- arrays ---------------------------------------------------------------------------------------------


def _unwrap(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of a checkpoint, without the wrapper, common prefixes and what is not needed."""
    for _ in range(len(WRAPPERS)):
        if not isinstance(state, Mapping):
            raise ModelError(f"{name} holds {type(state).__name__}, expected a dict of tensors: model.state_dict()")
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {
        key: value
        for key, value in state.items()
        if isinstance(key, str) and _is_tensor(value) and not key.endswith(IGNORED)
    }
    if not tensors:
        raise ModelError(f"{name} holds no tensors; found {quote([str(key) for key in state][:5])}")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_float(value: Any, wanted: Wanted, name: str) -> np.ndarray:
    """A tensor of the shape wanted -> float32 array in the layout of the Graph; a view where that is possible."""
    label = f"{name}: tensor {wanted.name!r}"
    if not isinstance(value, np.ndarray):
        try:
            value = value.detach().cpu()
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ModelError(f"{label} cannot be read as an array: {quote(str(error))}") from None
    if value.dtype.kind != "f":
        raise ModelError(f"{label} has dtype {value.dtype}, expected floats; quantised weights are not supported")
    if wanted.view is not None:
        value = value.reshape(wanted.view)
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    with np.errstate(over="ignore"):
        array = np.require(value, np.float32, ("C", "A"))
    if not np.isfinite(array).all():
        raise ModelError(f"{label} holds NaN or infinite values; the training has failed or the file is damaged")
    if wanted.name.endswith("running_var") and (array < 0).any():
        raise ModelError(f"{label} holds a negative variance; the file is damaged")
    return array
