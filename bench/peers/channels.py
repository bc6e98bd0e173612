"""What a gather_channels node is in the words of other frameworks: a slice, a part of a split, or a channel shuffle."""

from __future__ import annotations

from fastmobilenet.graph import Graph, Node, Shape


def slice_of(node: Node) -> tuple[int, int] | None:
    """(first, end) of a node that takes a run of channels from one tensor, else None."""
    index = tuple(node.attrs["index"])
    if len(node.inputs) != 1 or index != tuple(range(index[0], index[0] + len(index))):
        return None
    return index[0], index[0] + len(index)


def shuffle_of(node: Node, channels: int) -> int | None:
    """The groups of a node that shuffles all `channels` of one tensor: the first channel of every group, then the
    second of every group, and so on. Else None."""
    index: tuple[int, ...] = tuple(node.attrs["index"])
    if len(node.inputs) != 1 or len(index) != channels or channels < 2 or index[0] != 0:
        return None
    each = index[1]  # channels of a group
    if each < 2 or channels % each:
        return None
    groups = channels // each
    shuffled = tuple(group * each + i for i in range(each) for group in range(groups))
    return groups if index == shuffled else None


def splits(graph: Graph, shapes: dict[str, Shape]) -> dict[str, list[Node]]:
    """Tensor name -> the nodes that cut all its channels into pieces, in the order of the channels. Tensors that
    nobody cuts so are left out, other readers do not matter."""
    found: dict[str, list[Node]] = {}
    for name, readers in graph.consumers().items():
        pieces = {}
        for node in readers:
            run = slice_of(node) if node.op == "gather_channels" else None
            if run is not None:
                pieces[run] = node
        runs = sorted(pieces)
        ends = [end for _, end in runs]
        if len(runs) > 1 and [first for first, _ in runs] == [0, *ends[:-1]] and ends[-1] == shapes[name][3]:
            found[name] = [pieces[run] for run in runs]
    return found
