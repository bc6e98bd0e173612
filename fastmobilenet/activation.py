"""Element-wise functions that follow a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ModelError

ACTIVATIONS = ("clamp", "hard_sigmoid", "hard_swish", "sigmoid", "swish")


@dataclass(frozen=True)
class Activation:
    """An element-wise function of x; NaN in gives NaN out.

    | kind         | y                                                        |
    |--------------|----------------------------------------------------------|
    | clamp        | min(max(x, lo), hi)                                      |
    | hard_sigmoid | min(max(alpha * x + beta, 0), 1)                         |
    | hard_swish   | x * min(max(alpha * x + beta, 0), 1) (Howard et al., 2019) |
    | sigmoid      | 1 / (1 + exp(-x))                                        |
    | swish        | x / (1 + exp(-x)) (also called SiLU)                     |

    ``alpha`` and ``beta`` are the source's own: 1/6 and 1/2 in PyTorch, Keras and TFLite, 0.2 and 1/2 where an ONNX
    file says nothing.
    """

    kind: str
    lo: float = -math.inf
    hi: float = math.inf
    alpha: float = 1 / 6
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise ModelError(f"activation {self.kind!r} is unknown; known: {', '.join(ACTIVATIONS)}")
        if math.isnan(self.lo) or math.isnan(self.hi) or self.lo > self.hi:
            raise ModelError(f"activation bounds must be ordered numbers, not {self.lo} and {self.hi}")
        if self.kind != "clamp" and (self.lo, self.hi) != (-math.inf, math.inf):
            raise ModelError(f"activation {self.kind} has no bounds; found {self.lo} and {self.hi}")
        if not (math.isfinite(self.alpha) and math.isfinite(self.beta)):
            raise ModelError(f"activation slope and offset must be finite, not {self.alpha} and {self.beta}")

    def __str__(self) -> str:
        if self.kind == "clamp":
            names = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}
            return names.get((self.lo, self.hi), f"clamp({self.lo:g}, {self.hi:g})")
        if self.kind.startswith("hard_") and (abs(self.alpha - 1 / 6) > 1e-6 or self.beta != 0.5):
            return f"{self.kind}({self.alpha:g}, {self.beta:g})"
        return self.kind


RELU = Activation("clamp", 0.0)
RELU6 = Activation("clamp", 0.0, 6.0)
HARD_SIGMOID = Activation("hard_sigmoid")
HARD_SWISH = Activation("hard_swish")
SIGMOID = Activation("sigmoid")
SWISH = Activation("swish")
