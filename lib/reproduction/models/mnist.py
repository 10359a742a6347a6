"""The classifiers of Table 1 (Chen et al. 2018, section 3).

All but the MLP share a stem that downsamples twice and a linear classifier on top; they differ in what lies
between: residual blocks, or one ODE solve in their place. The paper leaves the widths open; these are the ones
of its authors' later example: 64 channels of 6 × 6 pixels.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from neural_ode.errors import UnknownNameError
from neural_ode.nn import OdeBlock
from neural_ode.solution import Statistics

__all__ = ["MNIST_MODELS", "ConvDynamics", "MnistNet", "Residual", "Stem", "mlp", "mnist_net"]

CHANNELS = 64
CLASSES = 10


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)


class Stem(nn.Sequential):
    """Images of shape (n, 1, 28, 28) to features of shape (n, channels, 6, 6)."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__(
            nn.Conv2d(1, channels, 3),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        )


class Head(nn.Sequential):
    """Features of shape (n, channels, height, width) to logits of shape (n, 10)."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__(
            _norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
        )


class Residual(nn.Module):
    """A pre-activation residual block `h + g(h)`: one Euler step of `dh/dt = g(h)`."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.branch = nn.Sequential(
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Shape (n, channels, height, width) in and out."""
        change: Tensor = self.branch(h)
        return h + change


class TimeConv(nn.Module):
    """A 3 × 3 convolution that sees the time as one more input channel, constant over the image.

    The time's share is the same for all images of a batch, so it is computed once: a map scaled by `t`.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """`t` of shape (), `z` of shape (n, channels, height, width)."""
        weight = self.conv.weight
        time_map = F.conv2d(t.expand(1, 1, *z.shape[2:]), weight[:, :1], padding=1)
        return F.conv2d(z, weight[:, 1:], self.conv.bias, padding=1) + time_map


class ConvDynamics(nn.Module):
    """The right-hand side of the ODE-Net: the residual branch with the time as a further channel."""

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = _norm(channels), _norm(channels), _norm(channels)
        self.conv1, self.conv2 = TimeConv(channels), TimeConv(channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """`t` of shape (), `z` of shape (n, channels, height, width), and so the result."""
        h = self.conv1(t, F.relu(self.norm1(z)))
        h = self.conv2(t, F.relu(self.norm2(h)))
        out: Tensor = self.norm3(h)
        return out


class MnistNet(nn.Module):
    """Stem, body, classifier.

    Args:
        body: maps features of shape (n, 64, 6, 6) to the same shape.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.stem = Stem()
        self.body = body
        self.head = Head()

    @property
    def stats(self) -> Statistics | None:
        """What the last solve cost, `None` in a network without one."""
        return self.body.stats if isinstance(self.body, OdeBlock) else None

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (n, 1, 28, 28) to logits of shape (n, 10)."""
        logits: Tensor = self.head(self.body(self.stem(images)))
        return logits


def mlp(hidden: int = 300) -> nn.Module:
    """The perceptron of Table 1's first row (LeCun et al. 1998): one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def _resnet(blocks: int) -> Callable[..., nn.Module]:
    return lambda **how: MnistNet(nn.Sequential(*(Residual() for _ in range(blocks))))


def _odenet(gradient: str) -> Callable[..., nn.Module]:
    return lambda **how: MnistNet(OdeBlock(ConvDynamics(), **{"gradient": gradient, **how}))


MNIST_MODELS: dict[str, Callable[..., nn.Module]] = {
    "MLP": lambda **how: mlp(),
    "stem only": _resnet(0),
    "ResNet-1": _resnet(1),
    "ResNet": _resnet(6),
    "RK-Net": _odenet("direct"),
    "ODE-Net": _odenet("backsolve"),
}
"""The rows of Table 1, and two networks to compare with: one residual block, and none."""


def mnist_net(name: str, **how: Any) -> nn.Module:
    """Build a row of `MNIST_MODELS`; RK-Net and ODE-Net hand `how` on to `neural_ode.solve`.

    Raises:
        UnknownNameError: no model has that name.
    """
    if name not in MNIST_MODELS:
        raise UnknownNameError("model", name, MNIST_MODELS)
    return MNIST_MODELS[name](**how)
