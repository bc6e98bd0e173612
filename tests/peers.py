"""Imports of peers that need a hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest

_kept_alive: list[Any] = []  # a Library takes its operators with it when it goes


def import_torchvision() -> Any:
    """The module, or skips the test where there is none.

    Its compiled half does not load beside a PyTorch of another build, for instance CUDA's beside the CPU's. Networks
    and transforms need none of it, but importing them describes its operators to PyTorch: they are declared here.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision
    except ImportError as error:
        pytest.skip(f"needs torchvision: {error}")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        import torchvision
    return torchvision
