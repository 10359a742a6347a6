"""A graph of PyTorch's operations as one program."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from neural_ode.compiled.native.formulas import ARITHMETIC, COMPARISONS, PRELUDE, literal
from neural_ode.compiled.native.operations import Operations, in_order, whole
from neural_ode.compiled.native.scope import Buffer, Scope, Unsupported, View

__all__ = ["Program"]

_ON_STACK = 2**10
"""Bytes of an array up to which it lies on the stack, which may be small where threads run."""

_STACK = 2**16
"""Bytes of all arrays there."""

_MOST_CONSTANTS = 2**10
"""Entries of a constant, each of which is a line of the program."""


class Program(Operations):
    """A graph as the text of a function `run(inputs, outputs)` in C++.

    Attributes:
        text: the program.
        outputs: shape and dtype of each output; `None` where the graph returns nothing.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[Any]):
        """
        Args:
            graph: of operations of ATen, with shapes that are numbers.
            inputs: tensors like those that it will get.

        Raises:
            Unsupported: something in it cannot be translated.
        """
        super().__init__()
        self.outputs: list[tuple[tuple[int, ...], torch.dtype] | None] = []
        found = self._run(graph, [self._input(i, x) for i, x in enumerate(inputs)])
        if self._in_place[-1]:
            raise Unsupported("something was written in place and not handed out")
        for x in found:
            self._output(x)
        body = list(self._scope.lines())
        declared = _declarations([buffer for buffer in self._buffers if buffer.stored])
        head = ['extern "C" int64_t run(void* const* in, void* const* out) {', "int64_t failed = 0;"]
        self.text = "\n".join([PRELUDE, *head, *declared, *body, "return failed;", "}", ""])

    # Inputs and outputs.

    def _input(self, number: int, x: Any) -> View:
        if not isinstance(x, Tensor) or x.device.type != "cpu" or x.layout != torch.strided:
            raise Unsupported("an input is no tensor in memory")
        size, stride = whole(x.shape), whole(x.stride())
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        buffer = self._buffer(x.dtype, extent)
        buffer.source = f"in[{number}]"
        return View(buffer, size, stride, 0, 0)

    def _output(self, x: Any) -> None:
        if x is None:
            self.outputs.append(None)
            return
        if not isinstance(x, View):
            raise Unsupported("an output is no tensor")
        if not x.dense or x.buffer.source or x.version != x.buffer.version:
            x = self._copied(x)
        x.buffer.source, x.buffer.stored = f"out[{len(self.outputs)}]", True
        self.outputs.append((x.size, x.buffer.dtype))

    # The graph.

    def _run(self, graph: GraphModule, inputs: Sequence[Any]) -> Sequence[Any]:
        given = iter(inputs)
        values: dict[Node, Any] = {}
        for node in graph.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            kwargs = dict(kwargs)
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self._attribute(getattr(graph, node.target))
            elif node.op == "output":
                if not all(in_order(x) for x in node.all_input_nodes):
                    raise Unsupported("an output is not in order")
                single = args[0] is None or isinstance(args[0], View)  # which is a tuple, too
                return [args[0]] if single else args[0]
            elif node.op == "call_function":
                known = len(self._buffers)
                found = values[node] = self._call(node, args, kwargs)
                if isinstance(found, View) and found.buffer in self._buffers[known:]:
                    self._makers[found.buffer] = node
            else:
                raise Unsupported(node.op)
        raise Unsupported("a graph returns nothing")

    def _attribute(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.device.type != "cpu":
            raise Unsupported("a constant is not in memory")
        if x.numel() > _MOST_CONSTANTS:
            raise Unsupported("a constant is large")
        view = self._new(whole(x.shape), x.dtype)
        numbers = x.detach().reshape(-1).tolist()
        part = view._replace(size=(view.numel,), stride=(1,))
        lines = [f"{part.at([i])} = {literal(value, x.dtype)};" for i, value in enumerate(numbers)]
        self._scope.block(lambda: lines, [], [view.buffer])
        return view

    def _call(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            return args[0][args[1]]
        if target is torch.ops.higher_order.while_loop:
            return self._loop(args[0], args[1], list(args[2]), list(args[3]), [])
        if target is torch.ops.higher_order.auto_functionalized_v2:
            return self._loop_in_place(args, kwargs)
        if not isinstance(target, torch._ops.OpOverload):
            raise Unsupported(str(target))
        name = target._schema.name
        if name in ARITHMETIC or name in COMPARISONS:
            return self._entries(node, name, args, kwargs)
        own = getattr(self, "_" + name.replace("::", "_"), None)
        if own is not None:
            made: View = own(node, *args, **kwargs)
            return made
        alias = target._schema.arguments[0].alias_info if target._schema.arguments else None
        if alias is not None and not alias.is_write:
            return self._view(target, args, kwargs)
        raise Unsupported(name)

    # Loops.

    def _loop_in_place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[View]:
        """A loop that writes into tensors from outside, as `torch.compile` puts it."""
        if args[0] is not torch.ops.higher_order.while_loop:
            raise Unsupported(str(args[0]))
        bases = []
        for x in kwargs["_all_bases"]:
            if not x.buffer.mutable or x.buffer.source or not x.dense:
                x = self._copied(x)
                x.buffer.mutable = True
            self._note(x.buffer)
            bases.append(x)
        carried = [kwargs.pop(f"carried_input{i}") for i in _count(kwargs, "carried_input{}")]
        additional: list[Any] = []
        while True:
            own, base = f"additional_input{len(additional)}", f"_additional_input{len(additional)}_base_index"
            if own in kwargs:
                additional.append(kwargs.pop(own))
            elif base in kwargs:
                additional.append(bases[kwargs.pop(base)])
            else:
                break
        known = {"cond_fn", "body_fn", "_all_bases", "_op_schema"}
        if set(kwargs) - known:
            raise Unsupported("a loop writes into part of a tensor")
        return self._loop(kwargs["cond_fn"], kwargs["body_fn"], carried, additional, bases)

    def _loop(
        self,
        condition: GraphModule,
        body: GraphModule,
        carried: list[Any],
        additional: list[Any],
        written: list[View],
    ) -> list[View]:
        """A loop of the graph.

        Args:
            condition, body: graphs of both.
            carried: what turns hand on.
            additional: what else the graphs get.
            written: which of that they write into.

        Returns:
            What the last turn hands on, and what was written.
        """
        if not all(isinstance(x, View) for x in (*carried, *additional)):
            raise Unsupported("a loop carries numbers")
        states = [self._new(x.size, x.buffer.dtype) for x in carried]
        for state, x in zip(states, carried, strict=True):
            self._assign(state, x)
        outer, self._scope = self._scope, Scope()
        inside = self._scope
        self._in_place.append(set())
        (going,) = self._run(condition, [*states, *additional])
        inside.block(lambda: [f"if (!{going.at([0] * len(going.size))}) break;"], [going], [])
        inside.close()
        found = list(self._run(body, [*states, *(x._replace(version=x.buffer.version) for x in additional)]))
        if self._in_place.pop():
            raise Unsupported("a loop writes in place what it does not hand on")
        own = {state.buffer for state in states}
        following = [self._copied(x) if x.buffer in own else x for x in found]
        for state, x in zip(states, following, strict=True):
            self._assign(state, x)
        self._scope = outer
        buffers = [x.buffer for x in (*states, *written)]

        def lines() -> Iterable[str]:
            yield "for (;;) {"
            yield from inside.lines()
            yield "}"

        outer.block(lines, [], buffers)
        return [*states, *(x._replace(version=x.buffer.version) for x in written)]


def _declarations(buffers: Sequence[Buffer]) -> list[str]:
    """Lines that declare the arrays; larger ones share one piece of the heap."""
    lines, size, on_stack = [], 0, 0
    for buffer in buffers:
        kind, name, source = buffer.kind, buffer.name, buffer.source
        length = buffer.numel * buffer.dtype.itemsize
        if not source and length <= _ON_STACK and on_stack + length <= _STACK:
            on_stack += length
            lines.append(f"alignas(64) {kind} {name}[{buffer.numel}];")
            continue
        if not source:
            source = f"(heap.get() + {size})"
            size += -(-length // 64) * 64
        lines.append(f"{kind}* const __restrict {name} = reinterpret_cast<{kind}*>({source});")
    if size:
        lines.insert(0, f"const Heap heap(static_cast<char*>(std::aligned_alloc(64, {size})), &std::free);")
        lines.insert(1, "if (!heap) return 2;")
    return lines


def _count(kwargs: dict[str, Any], name: str) -> range:
    number = 0
    while name.format(number) in kwargs:
        number += 1
    return range(number)
