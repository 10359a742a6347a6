"""Numbers that the user's function depends on, as inputs of a graph.

`torch.compile` takes a Python number in a closure, a default argument or an attribute for a constant, so that
`lambda t, y: -k * y` is compiled anew for every `k`. As tensors of shape () they are inputs like any other.
"""

import copy
import functools
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

__all__ = ["constants_of", "numbers_of", "with_numbers"]


def with_numbers(f: Any, number: Callable[[float], Any], known: dict[int, Any]) -> Any:
    """`f` with `number(x)` in place of every Python float `x` that it refers to; `f` itself where there is none.

    Functions, methods, partial functions and modules are copied as far as they change; parameters are shared.
    Modules of PyTorch keep theirs: its operations take numbers there, not tensors.

    Args:
        f: a function, module, or what these refer to.
        number: what to put in place of a number.
        known: what was found for objects so far, by their identity.
    """
    if isinstance(f, float):
        return number(f)
    if id(f) in known:
        return known[id(f)]
    known[id(f)] = f  # for what refers to itself
    replaced = _rebuilt(f, lambda x: with_numbers(x, number, known))
    known[id(f)] = replaced
    return replaced


def numbers_of(f: Any) -> tuple[float, ...]:
    """The Python floats that `f` refers to, in the order that `with_numbers` meets them."""
    found: list[float] = []

    def note(x: float) -> float:
        found.append(x)
        return x

    with_numbers(f, note, {})
    return tuple(found)


def constants_of(f: Any, seen: tuple[int, ...] = ()) -> tuple[float, ...]:
    """Numbers, whole ones too, in closures, default arguments and global names of functions, and other floats."""
    if not isinstance(f, types.FunctionType) or id(f) in seen:
        return numbers_of(f)
    values: list[Any] = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    for cell in f.__closure__ or ():
        with suppress(ValueError):  # it is still empty
            values.append(cell.cell_contents)
    values += [f.__globals__[name] for name in f.__code__.co_names if name in f.__globals__]
    found: list[float] = []
    for x in values:
        if isinstance(x, int | float) and not isinstance(x, bool):
            found.append(x)
        elif not isinstance(x, types.ModuleType | type):
            found += constants_of(x, (*seen, id(f)))
    return tuple(found)


def _rebuilt(f: Any, replace: Callable[[Any], Any]) -> Any:
    if isinstance(f, types.FunctionType):
        return _function(f, replace)
    if isinstance(f, types.MethodType):
        owner = replace(f.__self__)
        return f if owner is f.__self__ else _bound(f.__func__, owner)
    if isinstance(f, functools.partial):
        keywords = {name: replace(x) for name, x in f.keywords.items()}
        return functools.partial(replace(f.func), *map(replace, f.args), **keywords)
    if isinstance(f, nn.Module):
        return _module(f, replace)
    if type(f) in (list, tuple):
        items = type(f)(map(replace, f))
        return items if any(new is not old for new, old in zip(items, f, strict=True)) else f
    if type(f) is dict:
        values = {key: replace(x) for key, x in f.items()}
        return values if any(x is not f[key] for key, x in values.items()) else f
    if callable(f) and hasattr(f, "__dict__") and not isinstance(f, type | Tensor | types.BuiltinFunctionType):
        return _object(f, replace)
    return f


def _bound(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    """A method as a function: a graph would hold on to the object that a method is bound to."""
    return lambda *arguments: function(owner, *arguments)


def _function(f: types.FunctionType, replace: Callable[[Any], Any]) -> types.FunctionType:
    cells = tuple(_cell(cell, replace) for cell in f.__closure__ or ())
    defaults = tuple(map(replace, f.__defaults__ or ()))
    given = f.__kwdefaults__ or {}
    keywords = {name: replace(x) for name, x in given.items()}
    before = (*(f.__closure__ or ()), *(f.__defaults__ or ()), *given.values())
    if all(new is old for new, old in zip((*cells, *defaults, *keywords.values()), before, strict=True)):
        return f
    closure = cells if f.__closure__ else None
    rebuilt = types.FunctionType(f.__code__, f.__globals__, f.__name__, defaults or None, closure)
    rebuilt.__kwdefaults__ = keywords or None
    return rebuilt


def _cell(cell: Any, replace: Callable[[Any], Any]) -> Any:
    try:
        content = cell.cell_contents
    except ValueError:  # it is still empty
        return cell
    new = replace(content)
    return cell if new is content else types.CellType(new)


def _object(f: Any, replace: Callable[[Any], Any]) -> Any:
    own = {name: replace(x) for name, x in vars(f).items()}
    if all(x is vars(f)[name] for name, x in own.items()):
        return f
    rebuilt = copy.copy(f)
    vars(rebuilt).update(own)
    return rebuilt


def _module(f: nn.Module, replace: Callable[[Any], Any]) -> nn.Module:
    own = {}
    if not type(f).__module__.startswith("torch."):
        own = {name: replace(x) for name, x in vars(f).items() if isinstance(x, float)}
    children = {name: part if part is None else replace(part) for name, part in f._modules.items()}
    if not any(isinstance(x, Tensor) for x in own.values()) and all(
        part is f._modules[name] for name, part in children.items()
    ):
        return f
    rebuilt = copy.copy(f)
    vars(rebuilt).update(own, _modules=children)
    return rebuilt
