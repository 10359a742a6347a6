"""`compile=True`: solves made by `torch.compile`.

For small states most of the time of a solve is not arithmetic but the way there: Python, and the dispatch of some
hundred small operations a step. Here a whole solve is one graph: the steps, which are those of `Method.step`, the
error control, and the loop over both. Times, tolerances and limits are tensors in there, so that changing them,
the size of a batch, or the values of parameters compiles nothing.

* `graphs`: compiles functions and keeps what was compiled.
* `dynamics`: the user's function with its parameters as inputs.
* `loop`: the forward loop as a graph; `pullback`: the loop back through its steps.
* `forward`: solves in Python around the loop, and their gradient by recomputation of the steps.
* `adjoint`: the backward solve of the adjoint method as one graph.
* `steps`: single compiled steps, for what does not fit in a graph as a whole.
* `folding`: many steps that are no solve, such as those of a training, as one graph.
"""

from neural_ode.compiled.adjoint import compiled_adjoint
from neural_ode.compiled.compiler import CannotCompile
from neural_ode.compiled.folding import fold
from neural_ode.compiled.forward import compiled_integrate, integrate_compiled, per_sample_compiled
from neural_ode.compiled.steps import with_compiled_steps, with_plain_steps

__all__ = [
    "CannotCompile",
    "compiled_adjoint",
    "compiled_integrate",
    "fold",
    "integrate_compiled",
    "per_sample_compiled",
    "with_compiled_steps",
    "with_plain_steps",
]
