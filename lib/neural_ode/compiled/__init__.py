"""`compile=True`: solves made by `torch.compile`.

For small states most of the time of a solve is not arithmetic but the way there: Python, and the dispatch of some
hundred small operations a step. Here a whole solve is one graph: the steps, which are those of `Method.step`, the
error control, and the loop over both. Times, tolerances and limits are tensors in there, so that changing them, or
the values of parameters, compiles nothing. On a CPU, graphs of few numbers become one function in C++, for each of
the first sizes of a batch; PyTorch's own compiler takes all others.

* `cache`: what a graph depends on, and where graphs are kept; `clear()` forgets them.
* `compiler`: compiles functions; `native`: those of few numbers.
* `dynamics`: the user's function with its parameters as inputs; `numbers`: those it refers to.
* `loop`: the forward loop as a graph; `backward`: the loop back through its steps.
* `plan`, `outputs`, `forward`: solves in Python around the loop; `gradient`: their gradient by recomputation.
* `adjoint`: the backward solve of the adjoint method as one graph.
* `steps`: single compiled steps, for what does not fit in a graph as a whole.
* `solve`: which of these a solve gets.
* `folding`: many steps that are no solve, such as those of a training, as one graph.
"""

from neural_ode.compiled.adjoint import compiled_adjoint
from neural_ode.compiled.cache import clear
from neural_ode.compiled.compiler import CannotCompile
from neural_ode.compiled.folding import fold
from neural_ode.compiled.solve import compiled_integrate, integrate_compiled, per_sample_compiled
from neural_ode.compiled.steps import with_compiled_steps, with_compiled_steps_again, with_plain_steps

__all__ = [
    "CannotCompile",
    "clear",
    "compiled_adjoint",
    "compiled_integrate",
    "fold",
    "integrate_compiled",
    "per_sample_compiled",
    "with_compiled_steps",
    "with_compiled_steps_again",
    "with_plain_steps",
]
