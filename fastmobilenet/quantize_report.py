"""What quantisation did to a network: how often it still agrees, how much noise each layer has, its size and time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

#: A layer with less signal than this, in dB, is named in a warning.
BAD = 10.0


@dataclass(frozen=True)
class LayerQuality:
    """``snr`` in dB: the power of the layer's tensor in fp32 over that of the error it has after quantisation, its own
    and what it inherits. ``layer`` is the name that :func:`Model.quantize` takes in ``keep``; ``name`` is that of the
    tensor, and differs where a layer became several. ``kept``: the layer is fp32 still."""

    name: str
    layer: str
    op: str
    snr: float
    kept: bool


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`Model.quantize` found.

    ``agreement`` is the share of pictures for which the quantised network's best class is that of the fp32 network, of
    the ``pictures`` that calibrated it and of the ``held_out`` that did not; None where there were none or the network
    is no classifier. ``bytes`` are those of the .fmn files, ``seconds`` those of the fastest run of one picture, each
    (before, after).
    """

    pictures: int
    held_out: int
    agreement: float | None
    agreement_held_out: float | None
    layers: tuple[LayerQuality, ...]
    equalized: bool
    bias_corrected: bool
    bytes: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def bad(self) -> tuple[LayerQuality, ...]:
        """Layers of less than 10 dB, the worst first."""
        found = [q for q in self.layers if q.snr < BAD and not q.kept]
        return tuple(sorted(found, key=lambda q: q.snr))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be looked at, in words."""
        texts = [
            f"{q.name} ({q.op}): {q.snr:.1f} dB; noise is a third of the signal's magnitude or more" for q in self.bad
        ]
        if texts:
            # Noise is inherited: the first layer in the order of the network is where to begin.
            first = next(q for q in self.layers if q in self.bad)
            texts.append(f"the first of them is {first.layer!r}: try keep=[{first.layer!r}], which leaves it in fp32")
        if self.pictures < 10:
            texts.append(f"{self.pictures} pictures are few to calibrate with; take 30 or more of different kinds")
        return tuple(texts)

    def as_dict(self) -> dict[str, Any]:
        """All of it as what JSON can hold; an infinite signal-to-noise is None."""
        data = asdict(self)
        data["layers"] = [{**q, "snr": q["snr"] if math.isfinite(q["snr"]) else None} for q in data["layers"]]
        return {**data, "warnings": list(self.warnings)}

    def lines(self) -> list[str]:
        """All but the warnings, for people."""
        before, after = self.bytes
        slow, fast = self.seconds
        lines = [
            f"pictures      {self.pictures} to calibrate, {self.held_out} held out",
            f"same top-1    {_percent(self.agreement)} calibration, {_percent(self.agreement_held_out)} held out",
            f"file          {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB",
            f"one picture   {1e3 * slow:.3f} ms -> {1e3 * fast:.3f} ms, {slow / fast:.2f} times as fast",
        ]
        measured = [q for q in self.layers if not q.kept and math.isfinite(q.snr)]
        if measured:
            worst = min(measured, key=lambda q: q.snr)
            last = measured[-1]
            lines.append(f"signal/noise  {last.snr:.1f} dB at the end, least {worst.snr:.1f} dB at {worst.name}")
        kept = list(dict.fromkeys(q.layer for q in self.layers if q.kept))
        if kept:
            lines.append(f"in fp32       {', '.join(kept)}")
        return lines

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"warning: {text}" for text in self.warnings)])


def _percent(share: float | None) -> str:
    return "none of" if share is None else f"{100 * share:.1f} %"
