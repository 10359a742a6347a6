"""Normal distributions with diagonal covariance, by mean and logarithm of the variance."""

import math

import torch
from torch import Tensor

__all__ = ["kl_to_standard_normal", "normal_log_density", "sample_normal"]


def normal_log_density(x: Tensor, mean: Tensor, log_variance: Tensor | float) -> Tensor:
    """Log-density of each entry, in nats; shapes broadcast."""
    log_variance = torch.as_tensor(log_variance, dtype=x.dtype, device=x.device)
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * (-log_variance).exp())


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, I)) in nats, summed over the last dimension.

    Kingma & Welling (2014), *Auto-Encoding Variational Bayes*, appendix B: `½ Σ (μ² + σ² - 1 - log σ²)`.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def sample_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A sample of each, differentiable with respect to both arguments."""
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
