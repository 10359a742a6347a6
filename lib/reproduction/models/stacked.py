"""Several models of one kind as one model, whose every tensor has a first dimension for the model.

Small models spend their time on calling the operations, not in them: twenty at once cost about as much as four.
They share nothing but the calls, so the gradient of the sum of their losses holds the gradient of each.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["StackedLinear", "StackedRNN", "max_over_models", "stack", "unstack"]


class StackedLinear(nn.Module):
    """Linear layers of one shape: the k-th one maps `x[k]`.

    Args:
        layers: theirs.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight, self.bias = (_stacked([getattr(x, name) for x in layers]) for name in ("weight", "bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `x` (models, …, features), the result (models, …, outputs)."""
        product = torch.baddbmm(self.bias[:, None], x.flatten(1, -2), self.weight.mT)
        return product.view(*x.shape[:-1], -1)


class StackedRNN(nn.Module):
    """The weights of Elman networks of one shape, by the names that `nn.RNN` gives them; for `models.elman`.

    Args:
        networks: theirs.
    """

    def __init__(self, networks: Sequence[nn.RNN]):
        super().__init__()
        for name, _ in networks[0].named_parameters():
            setattr(self, name, _stacked([x.get_parameter(name) for x in networks]))


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One model that does with `x[k]` what the k-th one does with it.

    Its class and the names of its parameters are those of the models. Linear and recurrent layers are replaced by
    stacked ones; other parameters are stacked, so what is done with them must work with one dimension more.
    """
    kinds: dict[type, type[nn.Module]] = {nn.Linear: StackedLinear, nn.RNN: StackedRNN}
    if (whole := kinds.get(type(models[0]))) is not None:
        return whole(models)
    stacked = copy.deepcopy(models[0])
    for name, layer in models[0].named_modules():
        if (kind := kinds.get(type(layer))) is not None:
            parent, _, own = name.rpartition(".")
            setattr(stacked.get_submodule(parent), own, kind([model.get_submodule(name) for model in models]))
    for name, old in models[0].named_parameters():
        if stacked.get_parameter(name).shape == old.shape:
            parent, _, own = name.rpartition(".")
            setattr(stacked.get_submodule(parent), own, _stacked([model.get_parameter(name) for model in models]))
    return stacked


def unstack(weights: Mapping[str, Tensor], model: int) -> dict[str, Tensor]:
    """The weights of one of the models, from those of `stack`."""
    return {name: value[model] for name, value in weights.items()}


def max_over_models(state: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The largest root mean square of a model, and of a part of its state: by it a step serves them all."""
    if isinstance(state, Tensor):
        return state.flatten(1).square().mean(1).max().sqrt()
    return torch.stack([max_over_models(part) for part in state]).max()


def _stacked(parameters: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([x.detach() for x in parameters]))
