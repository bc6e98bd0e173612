"""Layers beyond the MobileNets': convolutions with bias, pools, concatenation, the order of channels."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ModelError
from ..graph import RELU, Activation, Padding
from ._common import NetBuilder, _shape


class LayerBuilder(NetBuilder):
    """A NetBuilder with the layers of SqueezeNet, ShuffleNet and the older networks. Their activation is ReLU.

    A pool with ``padding=None`` is padded as the convolutions are; a number means this many pixels on all sides.
    """

    def biased(
        self,
        x: str,
        name: str,
        channels: int,
        *,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        batch_norm: bool = False,
        activation: Activation | None = RELU,
    ) -> str:
        """Convolution with bias, [batch norm,] and the activation if there is one. Returns the last one's name.

        padding: pixels on all sides; None for half the kernel.
        """
        params = {"weight": _shape(channels, kernel, kernel, self.channels[x] // groups), "bias": _shape(channels)}
        pixels = kernel // 2 if padding is None else padding
        attrs = {"stride": (stride, stride), "padding": (pixels,) * 4, "dilation": (1, 1), "groups": groups}
        y = self._add("conv2d", x, name=name, channels=channels, params=params, **attrs)
        if batch_norm:
            y = self.batch_norm(y, f"{name}/bn")
        return self.activate(y, f"{name}/{activation}", activation) if activation else y

    def activate(self, x: str, name: str, activation: Activation = RELU) -> str:
        return self._add("activation", x, name=name, channels=self.channels[x], activation=activation)

    def max_pool(
        self, x: str, name: str, *, kernel: int = 3, stride: int = 2, padding: int | None = 0, ceil: bool = False
    ) -> str:
        pixels = self._pool_padding(kernel, padding)
        attrs = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": pixels}
        return self._add("max_pool2d", x, name=name, channels=self.channels[x], ceil=ceil, **attrs)

    def avg_pool(self, x: str, name: str, *, kernel: int = 3, stride: int = 2, padding: int | None = 0) -> str:
        """Padding in pixels counts as zeros, as in PyTorch; the "same" padding of TensorFlow does not count."""
        pixels = self._pool_padding(kernel, padding)
        attrs = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": pixels}
        return self._add("avg_pool2d", x, name=name, channels=self.channels[x], count_padding=pixels != "same", **attrs)

    def adaptive_pool(self, x: str, name: str, size: int) -> str:
        return self._add("adaptive_avg_pool2d", x, name=name, channels=self.channels[x], size=(size, size))

    def global_pool(self, x: str, name: str) -> str:
        return self._add("global_avg_pool", x, name=name, channels=self.channels[x])

    def concat(self, name: str, *inputs: str) -> str:
        return self._add("concat", *inputs, name=name, channels=sum(self.channels[x] for x in inputs))

    def take(self, x: str, name: str, index: Iterable[int]) -> str:
        """The channels of these numbers, in this order."""
        chosen = tuple(index)
        return self._add("gather_channels", x, name=name, channels=len(chosen), index=chosen)

    def shuffle(self, x: str, name: str, groups: int) -> str:
        """The first channel of every group, then the second of every group, and so on (Zhang et al., 2018)."""
        each = self.channels[x] // groups
        return self.take(x, name, (group * each + i for i in range(each) for group in range(groups)))

    def lrn(self, x: str, name: str, *, size: int, alpha: float, beta: float, bias: float) -> str:
        attrs = {"size": size, "alpha": alpha, "beta": beta, "bias": bias}
        return self._add("lrn", x, name=name, channels=self.channels[x], **attrs)

    def dense(self, x: str, name: str, inputs: int, channels: int, activation: Activation | None = None) -> str:
        """``inputs``: values of x, pixels times channels."""
        params = {"weight": _shape(channels, inputs), "bias": _shape(channels)}
        y = self._add("dense", x, name=name, channels=channels, params=params)
        return self.activate(y, f"{name}/{activation}", activation) if activation else y

    def _pool_padding(self, kernel: int, padding: int | None) -> Padding | str:
        return self._padding(kernel) if padding is None else (padding, padding, padding, padding)


def check_only_padding(network: str, padding: str) -> None:
    """For a network with paddings of its own. Raises ModelError for any other rule."""
    if padding != "symmetric":
        raise ModelError(f'{network} has the paddings of its paper (padding="symmetric"), not {padding!r}')


def check_published(network: str, width: float, widths: tuple[float, ...]) -> None:
    """For a network whose channels are a table and not a rule. Raises ModelError for a width without a column."""
    if width not in widths:
        known = " or ".join(f"{w:g}" for w in widths)
        raise ModelError(f"{network} has width {known}, not {width!r}")
