"""The windows of a pooling layer, as the runtime wants them: cut to the map, with what a mean divides by."""

from __future__ import annotations

from .graph import Node, Shape, kernel_size, resolve_padding

#: First and behind the last row (or column) of a window, and how many rows count for a mean.
Span = tuple[int, int, float]


def pool_spans(node: Node, x: Shape, y: Shape) -> tuple[list[Span], list[Span]]:
    """The rows of every output row and the columns of every output column, for an input of shape x."""
    _, h, w, _ = x
    _, oh, ow, _ = y
    if node.op == "adaptive_avg_pool2d":
        return _adaptive(h, oh), _adaptive(w, ow)
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    top, bottom, left, right = resolve_padding(node, h, w)
    if not isinstance(node.attrs["padding"], str):  # without what a ceil window adds, which never counts
        _, bottom, _, right = node.attrs["padding"]
    padded = node.attrs.get("count_padding", False)
    return (
        _windows(h, oh, kh, sh, top, bottom if padded else None),
        _windows(w, ow, kw, sw, left, right if padded else None),
    )


def _windows(size: int, outputs: int, kernel: int, stride: int, before: int, after: int | None) -> list[Span]:
    """``after``: the padding behind the map if padding counts, else None."""
    spans = []
    for i in range(outputs):
        start = i * stride - before
        begin = min(max(start, 0), size - 1)
        end = max(min(start + kernel, size), begin) if start < size else begin
        counted = end - begin if after is None else min(start + kernel, size + after) - start
        spans.append((begin, end, float(counted)))
    return spans


def _adaptive(size: int, outputs: int) -> list[Span]:
    spans = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return [(begin, end, float(end - begin)) for begin, end in spans]
