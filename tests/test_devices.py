"""No tensor is made on the wrong device: everything runs on a device that is not there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.nn import ContinuousFlow
from pretend_device import DEVICE, Elsewhere, PretendDeviceError, pretend_device, to_cpu, to_device, waits
from reproduction.data.events import draw_events
from reproduction.data.oscillators import draw_oscillators
from reproduction.data.spirals import draw_spirals
from reproduction.models.flows import HamiltonianDynamics, HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.models.latent_ode import spiral_latent_ode
from reproduction.models.mnist import mnist_net
from reproduction.models.rnn import NextObservationRNN
from reproduction.training.flows import Matching, train_continuous
from reproduction.training.poisson import train_joint, train_rate
from reproduction.training.spirals import train_latent_odes, train_rnns


def test_the_device_finds_tensors_in_the_wrong_place() -> None:
    with pretend_device():
        there = torch.ones(3, device=DEVICE)
        assert isinstance(there, Elsewhere)
        assert there.device == DEVICE
        assert (2 * there + torch.tensor(1.0)).sum().item() == 9
        assert torch.zeros_like(there).device == DEVICE
        assert there.cpu().device.type == "cpu"
        assert torch.ones(3).new_tensor([1.0], dtype=torch.float64).dtype is torch.float64
        assert there.new_tensor([1.0]).device == DEVICE
        assert there.new_tensor([1.0], device="cpu").device.type == "cpu"
        here, index = torch.ones(3), torch.tensor([0, 2])
        assert there[index].device == DEVICE
        with pytest.raises(PretendDeviceError, match="two devices"):
            there + here
        with pytest.raises(PretendDeviceError, match="two devices"):
            here[index.to(DEVICE)]
        with pytest.raises(PretendDeviceError, match="two devices"):
            there[index] = here[:2]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.layers(y) * torch.cos(t)
        return slope


def check_gradients(work: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """On the device they are the CPU's."""
    expected = gradients(False, work)
    with pretend_device():
        found = gradients(True, work)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def gradients(device: bool, work: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    f, y0 = Network(), torch.randn(4, 2)
    if device:
        f, y0 = to_device(f), to_device(y0)
    y0.requires_grad_()
    inputs = [y0, *f.parameters()]
    return [to_cpu(x) for x in torch.autograd.grad(work(f, y0), inputs)]


@pytest.mark.parametrize("gradient", ["direct", "backsolve", "recursive_checkpoint", "interpolating"])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "adams"])
def test_solves(method: str, gradient: str) -> None:
    def work(f: nn.Module, y0: Tensor) -> Tensor:
        times = torch.linspace(0, 1, 4)
        y = solve(f, y0, times, method=method, gradient=gradient).y
        assert isinstance(y, Tensor)
        assert y.device == y0.device
        return y.square().sum()

    check_gradients(work)


@pytest.mark.parametrize("how", [{"method": "rk4", "step_size": 0.1}, {"method": "kvaerno5"}, {"method": "dopri8"}])
def test_other_methods(how: dict[str, Any]) -> None:
    def work(f: nn.Module, y0: Tensor) -> Tensor:
        y = solve(f, y0, (0.0, 1.0), **how).y
        assert isinstance(y, Tensor)
        return y.square().sum()

    check_gradients(work)


def test_steps_of_their_own_and_events() -> None:
    def crossing(t: Tensor, y: Tensor) -> Tensor:
        return y[0, 0] - 0.5

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return -y

    start = torch.linspace(1, 2, 6).reshape(3, 2)
    expected = [solve(fall, start, (0.0, 1.0), batched=True).y, solve(fall, start, (0.0, 2.0), event=crossing).y]
    with pretend_device():
        there = to_device(start)
        found = [solve(fall, there, (0.0, 1.0), batched=True).y, solve(fall, there, (0.0, 2.0), event=crossing).y]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(to_cpu(x), y)


@pytest.mark.parametrize(
    ("how", "for_a_step"),
    [
        ({"method": "dopri5"}, 1),
        ({"method": "tsit5"}, 1),
        ({"method": "dopri8"}, 1),
        ({"method": "bosh3"}, 1),
        ({"batched": True}, 6),  # times, lengths and errors of the rows
        ({"method": "rk4", "step_size": 0.05}, 1),
        ({"method": "adams"}, 6),  # coefficients, and the errors of three orders
    ],
)
def test_waiting_for_the_device(how: dict[str, Any], for_a_step: int) -> None:
    """Once a step, for its error; besides that once for an output, and some times a solve."""
    with pretend_device():
        start, before = to_device(torch.linspace(1, 2, 6).double().reshape(3, 2)), waits()
        solution = solve(lambda t, y: -y * y, start, torch.linspace(0, 5, 11), rtol=1e-9, atol=1e-9, **how)
        waited = waits() - before
    stats = solution.stats.per_sample or solution.stats
    steps = int(torch.as_tensor(stats.accepted + stats.rejected).max())  # rows step together
    assert steps >= 15
    assert 0 < waited <= for_a_step * steps + 25


def flow_planar() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    return ContinuousFlow(PlanarDynamics(HyperNetwork(2, 4)), 2), lambda m, x: m.log_prob(x)


def flow_of_layers() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    return PlanarFlow(2, 4, "base"), lambda m, x: m.log_prob(x)


def flow_hamiltonian() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    return ContinuousFlow(HamiltonianDynamics(2), 2), lambda m, x: m.push_forward(x)[1]


@pytest.mark.parametrize("build", [flow_planar, flow_of_layers, flow_hamiltonian])
def test_flows(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, work = build()
    x = torch.randn(5, 2)
    expected = work(model, x)
    with pretend_device():
        found = work(to_device(model), to_device(x))
        assert found.device == DEVICE
        assert model.sample(3).device == DEVICE
    torch.testing.assert_close(to_cpu(found.detach()), expected.detach())


@pytest.mark.parametrize("name", ["MLP", "ResNet", "RK-Net", "ODE-Net"])
def test_classifiers(name: str) -> None:
    torch.manual_seed(0)
    how = {} if name in ("MLP", "ResNet") else {"rtol": 1e-2, "atol": 1e-2}
    model = mnist_net(name, **how).eval()
    images = torch.rand(2, 1, 28, 28)
    expected = model(images).detach()
    with pretend_device():
        found = to_device(model)(to_device(images))
        found.sum().backward()
        assert all(p.grad is None or p.grad.device == DEVICE for p in model.parameters())
    torch.testing.assert_close(to_cpu(found.detach()), expected)


def test_models_of_series() -> None:
    spirals = draw_spirals("example", 3, 30, 0.1, 0)
    times, values = spirals.times, spirals.values
    with pretend_device():
        there = to_device((values, times))
        for model in (spiral_latent_ode(0.1), NextObservationRNN(2, 25, True)):
            to_device(model)
            score = model.elbo(*there) if hasattr(model, "elbo") else model.log_likelihood(*there)
            assert score.device == DEVICE
            score.sum().backward()
            assert all(p.grad is None or p.grad.device == DEVICE for p in model.parameters())


def test_trainings() -> None:
    """All that a notebook trains on a device: it comes back to the CPU with the numbers that the CPU makes."""
    flow = {"iterations": 2, "batch": 8, "rate": 0.01, "hidden": 4, "records": 1, "span": 1.0, "annealing": 0.0}
    series = {"steps": 2, "batch_size": 2, "lr": 0.01, "kl_warmup": 0, "noise_factor": 1.0}
    penalised = {**series, "path": 0.1, "consistency": 1.0}
    spirals = [draw_spirals("example", 4, 30, 0.1, seed) for seed in (0, 1)]
    events, oscillators = draw_events("periodic", 3, 0), draw_oscillators(3, 0.1, 0)
    runs: dict[str, Callable[[Any], nn.Module]] = {
        "CNF": lambda where: train_continuous(Matching("U1"), 2, 0, flow, {}, device=where)[0],
        "latent ODE": lambda where: train_latent_odes(
            spirals, spirals, (0, 1), penalised, {"noise": 0.1, "bounded": True}, {}, None, where
        )[1][0],
        "RNN": lambda where: train_rnns(spirals, spirals, (0, 1), series, True, None, where)[1][0],
        "rate": lambda where: train_rate("periodic", events, events, 0, series, {}, None, where)[0],
        "joint": lambda where: train_joint(oscillators, oscillators, 0, series, 0.1, {}, None, where)[0],
    }
    for name, run in runs.items():
        expected = run("cpu").state_dict()
        with pretend_device():
            found = run(DEVICE).state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=f"{name}: {key}")
