"""What notebooks 06 and 07 measure of normalizing flows (section 4, section 6 and appendix A)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.nn import ContinuousFlow
from reproduction.measure.cpu_time import shortest_seconds
from reproduction.measure.reversal import solved
from reproduction.models.flows import GatedUnits, HamiltonianDynamics, PlanarDynamics, PlanarFlow

__all__ = [
    "cost_both_ways",
    "density_grid",
    "exact_log_det",
    "jacobian_log_det",
    "partial_planar",
    "theorem_errors",
    "transported_density",
    "untrained_flows",
]


# Theorem 1 -------------------------------------------------------------------------------------------------------


def untrained_flows() -> dict[str, ContinuousFlow]:
    """Three untrained flows in float64: planar, volume-preserving, and over dynamics without a closed trace."""
    torch.manual_seed(0)
    units = GatedUnits(2, 8)
    with torch.no_grad():
        units.u.mul_(4)
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    return {
        "planar": ContinuousFlow(PlanarDynamics(units), 2, (0.0, 3.0)).double(),
        "any network": ContinuousFlow(_WithTime(network), 2, (0.0, 3.0)).double(),
        "Hamiltonian": ContinuousFlow(HamiltonianDynamics(2), 2, (0.0, 3.0)).double(),
    }


class _WithTime(torch.nn.Module):
    """A network of the point and the time."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        slope: Tensor = 2 * self.network(torch.cat([z, t.expand(len(z), 1)], 1))
        return slope


def exact_log_det(flow: ContinuousFlow, z: Tensor, step: float = 1e-3) -> Tensor:
    """`log |det ∂z(t1)/∂z(t0)|` by five-point differences of the flow, solved to a tolerance of 1e-13.

    Args:
        flow: in float64.
        z: points at `t0`, shape (n, dim).
        step: of the differences.

    Returns:
        Shape (n,).
    """
    shifts = step * torch.eye(flow.dim, dtype=z.dtype)
    cloud = torch.cat([z + k * shift for shift in shifts for k in (-2, -1, 1, 2)])
    with torch.no_grad():
        end = solve(flow.f, cloud, flow.span, method="dopri8", rtol=1e-13, atol=1e-13).y
    assert isinstance(end, Tensor)
    ends = end[-1].reshape(flow.dim, 4, *z.shape)
    columns = (ends[:, 0] - 8 * ends[:, 1] + 8 * ends[:, 2] - ends[:, 3]) / (12 * step)
    log_det: Tensor = torch.linalg.slogdet(columns.movedim(0, -1)).logabsdet
    return log_det


def jacobian_log_det(flow: ContinuousFlow, z: Tensor, tolerance: float) -> Tensor:
    """`log |det|` of the Jacobian of the map that the solver makes, by autograd through its steps; shape (n,).

    Args:
        flow: in float64.
        z: points at `t0`, shape (n, dim).
        tolerance: of the solve.
    """
    start = z.clone().requires_grad_()
    with solved(flow, rtol=tolerance, atol=tolerance):
        end = flow.transport(start).z[-1]
    rows = [torch.autograd.grad(end[:, i].sum(), start, retain_graph=True)[0] for i in range(flow.dim)]
    log_det: Tensor = torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet
    return log_det


def theorem_errors(flow: ContinuousFlow, z: Tensor, tolerances: Sequence[float]) -> list[float]:
    """Largest difference of the change of log-density to minus the exact log-determinant, for each tolerance."""
    exact = exact_log_det(flow, z)
    errors = []
    for tolerance in tolerances:
        with torch.no_grad(), solved(flow, rtol=tolerance, atol=tolerance):
            errors.append(float((flow.transport(z).change[-1] + exact).abs().max()))
    return errors


def cost_both_ways(flow: ContinuousFlow, x: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Evaluations (`nfe`) and CPU `seconds` of evaluating a density, of sampling with and without it.

    Args:
        flow: solved without compilation.
        x: points to evaluate the density at, shape (n, dim); as many are sampled.
        repeats: the shortest time of so many counts.
    """
    z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    works: dict[str, Callable[[], object]] = {
        "density": lambda: flow.log_prob(x),
        "sampling, with density": lambda: flow.push_forward(z),
        "sampling": lambda: flow.sample(len(x)),
    }
    cost = {}
    with torch.no_grad(), solved(flow, compile=False):
        for name, work in works.items():
            seconds = shortest_seconds(work, repeats)
            cost[name] = {"nfe": float(flow.stats.nfe), "seconds": seconds}
    return cost


# Densities -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def density_grid(log_prob: Callable[[Tensor], Tensor], window: float, pixels: int) -> Tensor:
    """Densities at the centres of a square of pixels around 0.

    Args:
        log_prob: of points, shape (n, 2) to (n,).
        window: half the side of the square.
        pixels: in a row.

    Returns:
        Shape (pixels, pixels), float32, row by row from below.
    """
    axis = (torch.arange(pixels) + 0.5) * (2 * window / pixels) - window
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    found = log_prob(torch.stack([x.reshape(-1), y.reshape(-1)], 1))
    return found.exp().reshape(pixels, pixels)


def transported_density(flow: ContinuousFlow, share: float) -> Callable[[Tensor], Tensor]:
    """The log-density of the flow after a share of its time, as a function of points, shape (n, dim) to (n,)."""
    t0, t1 = flow.span
    part = ContinuousFlow(flow.f, flow.dim, (t0, t0 + share * (t1 - t0)), flow.trace, **flow.how)
    return part.log_prob


def partial_planar(flow: PlanarFlow, share: float) -> PlanarFlow:
    """The flow made of the share of its layers that is next to the base distribution."""
    kept = max(1, round(share * len(flow.b)))
    part = PlanarFlow(flow.dim, kept, flow.leads_to)
    chosen = slice(0, kept) if flow.leads_to == "data" else slice(len(flow.b) - kept, None)
    with torch.no_grad():
        for name in ("w", "u", "b"):
            getattr(part, name).copy_(getattr(flow, name)[chosen])
    return part
