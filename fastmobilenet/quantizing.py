"""Model.quantize: the half of Model that turns it into a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model, Picture, Pictures
    from .quantize_report import QuantizationReport


class Quantizing:
    """What :class:`fastmobilenet.Model` inherits for quantisation."""

    _quantization: QuantizationReport | None = None

    def quantize(
        self: Any,
        images: Picture | Pictures,
        *,
        held_out: float = 0.2,
        equalize: bool = True,
        bias_correction: bool = True,
        keep: Sequence[str] = (),
        progress: Callable[[str, int, int], None] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> Model:
        """The same network on bytes: about a quarter of the size, and faster. How well it agrees with this one is in
        the ``quantization`` of the Model that is returned; print it.

        ``images``: the path of a folder of pictures, or what :meth:`run` takes, at best some 30 to 100 pictures of the
        kind that the network will see. They set the range of every tensor.
        ``held_out``: the share of them that sets no ranges and only tests the result, 0 to less than 1.
        ``equalize``: bring the channels of a tensor to more equal ranges first, where the layers allow it.
        ``bias_correction``: make up for what rounded weights add to the mean of each channel.
        ``keep``: names of layers that stay fp32, those of ``model.graph``.
        ``progress``: called as (what is done, pictures done, pictures in all).
        ``size``: as in :meth:`run`.

        Raises what :meth:`run` raises, TypeError and ValueError for a wrong option or no picture, and ModelError for a
        network that is quantised already.
        """
        from . import quantize  # imported here: few programs quantise

        x, at = self._accept(quantize.expand_folder(images), size)
        batch, _ = self._batch(x, at)
        chosen, rest = quantize.split(len(batch), held_out)
        options = quantize.Options(equalize, bias_correction, quantize.check_keep(keep))
        graph, report = quantize.quantize(self.graph, batch[chosen], at, options, self._threads, progress)
        model: Model = type(self)(graph, self._requested_threads, self._parameters)
        model._quantization = report(self._engine, model._engine, batch[rest])
        return model

    @property
    def quantization(self) -> QuantizationReport | None:
        """What :meth:`quantize` found when it made this Model; None for all others, one loaded from a file too."""
        return self._quantization
