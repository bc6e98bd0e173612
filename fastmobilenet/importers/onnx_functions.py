"""Functions of an ONNX file: operators that the file itself defines by others. Calls are replaced by their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import zip_longest

from ..errors import ModelError
from ._text import quote
from .onnx_operator import ATTRIBUTE, DOMAINS, NODE, OPSET, Operator, Scope, own_opset
from .protobuf import Kind, Message

#: The largest MobileNet has fewer than 1,000 operators with its constants.
MAX_OPERATORS = 10_000
MAX_FUNCTIONS = 2_000
#: Of functions that call functions.
MAX_DEPTH = 16

FUNCTION = Kind("a function", {1: 1, 4: 100, 5: 100, 7: MAX_OPERATORS, 9: 100, 10: 1, 11: 100, 13: 1})


class Function:
    """``key`` is (domain, name, overload), by which a call names it."""

    def __init__(self, message: Message, opset: int) -> None:
        self.key = (message.text(10), message.text(1), message.text(13))
        self._inputs = message.texts(4)
        self._outputs = message.texts(5)
        self._nodes = message.messages(7, NODE)
        self._opsets = message.messages(9, OPSET)
        self._file_opset = opset
        self._defaults = {m.text(1): m for m in message.messages(11, ATTRIBUTE)}

    def body(self, call: Operator) -> Iterator[tuple[Message, int, Scope]]:
        """The nodes, to be read in place of the call."""
        if len(call.inputs) > len(self._inputs) or len(call.outputs) > len(self._outputs):
            call.fail("it has more inputs or outputs than the function of the file has")
        # A name that no tensor of the main graph has, for it begins with one of them.
        prefix = next((o for o in call.outputs if o), "") + "::"
        names = {inner: outer or prefix + inner for inner, outer in zip(self._outputs, call.outputs, strict=False)}
        names |= dict(zip_longest(self._inputs, call.inputs, fillvalue=""))
        scope = Scope(prefix, names, {**self._defaults, **call.attributes()})
        return ((node, self._opset, scope) for node in self._nodes)

    @cached_property
    def _opset(self) -> int:
        return own_opset(self._opsets) or self._file_opset


def inlined(nodes: Sequence[Message], functions: Sequence[Function], opset: int) -> tuple[Operator, ...]:
    """The operators of the main graph, with the bodies of functions in place of what calls them."""
    known = {f.key: f for f in functions if f.key[0] not in DOMAINS}
    if len(known) < sum(f.key[0] not in DOMAINS for f in functions):
        raise ModelError("two functions of the file have the same name")
    found: list[Operator] = []
    count = 0
    waiting: list[Iterator[tuple[Message, int, Scope | None]]] = [((node, opset, None) for node in nodes)]
    while waiting:
        item = next(waiting[-1], None)
        if item is None:
            waiting.pop()
            continue
        operator = Operator(len(found), *item)
        function = known.get((operator.domain, operator.kind, operator.overload))
        if function is None:
            found.append(operator)
        elif len(waiting) > MAX_DEPTH:
            operator.fail(f"functions call each other more than {MAX_DEPTH} deep, {quote(operator.kind)} among them")
        else:
            waiting.append(function.body(operator))
        count += 1
        if count > MAX_OPERATORS:
            raise ModelError(f"with those of its functions the file has more than {MAX_OPERATORS} operators")
    return tuple(found)
