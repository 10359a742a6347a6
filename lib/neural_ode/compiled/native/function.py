"""A program built, loaded and called."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule

from neural_ode.compiled.native.program import Program
from neural_ode.compiled.native.scope import Unsupported

__all__ = ["native_function"]

_FLAGS = ("-ffp-contract=fast", "-fno-tree-slp-vectorize")
"""Products that are added are rounded once; and only loops become vectors."""

_FLAGS_OF_GCC = ("-ftree-loop-vectorize", "--param=vect-epilogues-nomask=0")
"""Loops become vectors, which PyTorch's compiler turns off, for it writes vectors itself. What is left over at the
end of a loop does not: of that, with vectors outside of loops, GCC 12 made wrong numbers for AVX512."""


def native_function(graph: GraphModule, inputs: Sequence[Any]) -> Callable[[list[Tensor]], list[Tensor | None]]:
    """A graph as a function of a list of tensors.

    What was built is kept on disk, where PyTorch's compiler keeps what it builds.

    Args:
        graph: see `Program`.
        inputs: the same.

    Raises:
        Unsupported: it cannot be translated.
    """
    from torch._inductor.codecache import CppCodeCache
    from torch._inductor.cpp_builder import is_gcc

    try:
        with unset_fake_temporarily():  # constants are to be read
            program = Program(graph, inputs)
        flags = (*_FLAGS, *(_FLAGS_OF_GCC if is_gcc() else ()))
        library = CppCodeCache.load(program.text, needs_vec_isa=True, extra_flags=flags)
    except Unsupported:
        raise
    except Exception as error:  # whatever it is, the other compiler may do without
        raise Unsupported(f"{type(error).__name__}: {error}") from error
    return _Function(library.run, len(inputs), program.outputs)


class _Function:
    """What was built, called with a list of tensors, which it empties."""

    _boxed_call = True  # by which PyTorch knows that it does

    def __init__(self, entry: Any, inputs: int, outputs: Sequence[tuple[tuple[int, ...], torch.dtype] | None]):
        """
        Args:
            entry: the function of the library.
            inputs: how many tensors it gets.
            outputs: see `Program`.
        """
        entry.restype, entry.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p]
        self._entry, self._outputs = entry, outputs
        self._pointers_in, self._pointers_out = (ctypes.c_void_p * max(1, n) for n in (inputs, len(outputs)))

    def __call__(self, given: list[Tensor]) -> list[Tensor | None]:
        """
        Raises:
            IndexError: a row was asked for that a tensor has not.
            MemoryError: there is none for the arrays.
        """
        found = [x and torch.empty(x[0], dtype=x[1], device="cpu") for x in self._outputs]
        pointers = self._pointers_in(*[x.data_ptr() for x in given])
        into = self._pointers_out(*[None if x is None else x.data_ptr() for x in found])
        failed = self._entry(pointers, into)
        given.clear()
        if failed == 2:
            raise MemoryError("there is no memory for the numbers of a compiled solve")
        if failed:
            raise IndexError("an index is out of range for a dimension of its tensor")
        return found
