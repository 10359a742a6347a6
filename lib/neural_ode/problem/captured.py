"""Which tensors get gradients, besides the initial state and the times.

What autograd does not see, it cannot trace: a solve that computes its gradient itself has to know what the dynamics
depend on. The parameters of a module are known; tensors that it merely refers to are found by looking.
"""

import functools
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.errors import NeuralODEWarning
from neural_ode.problem.dependence import ancestors, edge_of

__all__ = ["captured", "parameters_of", "warn_of_missing"]

_DEPTH, _WIDTH = 4, 100
"""How far to look into objects that hold objects, and how many entries of a container to look at."""


def parameters_of(f: object) -> tuple[Tensor, ...]:
    """The parameters of a module, none of anything else.

    In a replica made by `nn.DataParallel` they are plain attributes.
    """
    if not isinstance(f, nn.Module):
        return ()
    if not getattr(f, "_is_replica", False):
        return tuple(f.parameters())
    return tuple(
        value
        for part in f.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and value.requires_grad
    )


def captured(f: object) -> dict[str, Tensor]:
    """Tensors that require gradients and that a function or module refers to, by the names it has for them.

    Looks into closures, default arguments, global names, attributes and containers.
    """
    return {name: x for name, x in _captured(f, "", set(), 0) if x.requires_grad}


def _captured(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "f", value
        return
    if isinstance(value, str | bytes | int | float | complex | type | types.ModuleType) or value is None:
        return
    if id(value) in seen or depth > _DEPTH:
        return
    seen.add(id(value))
    for key, item in _items(value):
        yield from _captured(item, f"{name}.{key}" if name else str(key), seen, depth + 1)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a value refers to, with the names of it."""
    if isinstance(value, nn.Module):
        for where, part in value.named_modules():
            prefix = f"{where}." if where else ""
            for key, own in (*part._parameters.items(), *part._buffers.items()):
                yield prefix + key, own
            if not type(part).__module__.startswith("torch."):
                for key, item in vars(part).items():
                    if not key.startswith("_") and not isinstance(item, bool):
                        yield prefix + key, item
    elif isinstance(value, types.FunctionType):
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with suppress(ValueError):  # it is still empty
                yield key, cell.cell_contents
        yield from enumerate(value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).items()
        known = value.__globals__
        yield from ((key, known[key]) for key in value.__code__.co_names if key in known)
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, functools.partial):
        yield "func", value.func
        yield from enumerate(value.args)
        yield from value.keywords.items()
    elif isinstance(value, dict):
        yield from islice(value.items(), _WIDTH)
    elif isinstance(value, list | tuple):
        yield from enumerate(value[:_WIDTH])
    elif hasattr(value, "__dict__") and not type(value).__module__.startswith(("torch.", "numpy", "builtins")):
        yield from vars(value).items()


_seen: dict[tuple[Any, ...], tuple[str, ...]] = {}
"""What was missing for kinds of dynamics, by the names of what they refer to: looking costs an evaluation."""


def warn_of_missing(f: object, params: Sequence[Tensor], name: str, evaluate: Callable[[], Tensor]) -> None:
    """Warn of tensors that `f` uses, that require gradients, and that would get none.

    Those computed from tensors in `params`, and from nothing else that requires a gradient, get it through these.

    Args:
        f: the dynamics.
        params: what gets gradients.
        name: of the way to differentiate, for the message.
        evaluate: a slope at the start, to see what `f` uses of all that it refers to; called where there is doubt.
    """
    known = {id(p) for p in params}
    found = {key: x for key, x in captured(f).items() if id(x) not in known}
    if not found:
        return
    nodes = {edge_of(p)[0] for p in params if p.requires_grad}
    missing = [
        key
        for key, x in found.items()
        if x.grad_fn is None or any(hasattr(node, "variable") for node, _ in ancestors(x, behind=nodes))
    ]
    if not missing:
        return
    key = (getattr(f, "__code__", type(f)), *missing)
    if key not in _seen:
        if len(_seen) > _MOST:
            _seen.clear()
        used = _nodes_of(evaluate, behind=nodes)
        _seen[key] = tuple(n for n in missing if edge_of(found[n])[0] in used)
    missing = list(_seen[key])
    if missing:
        text = (
            f"gradient={name!r} computes no gradient for {', '.join(missing)}, which f uses and which require one: "
            "make them parameters of the module f, pass them in params (adjoint_params), or use gradient='direct'"
        )
        warnings.warn(text, NeuralODEWarning, stacklevel=6)


_MOST = 1000


def _nodes_of(evaluate: Callable[[], Tensor], behind: Collection[Any]) -> set[Any]:
    """The graph of a slope up to some nodes; random numbers stay as they were."""
    with torch.random.fork_rng(), torch.enable_grad():
        slope = evaluate()
    if not isinstance(slope, Tensor) or slope.grad_fn is None:
        return set()
    return {slope.grad_fn, *(node for node, _ in ancestors(slope, behind))}
