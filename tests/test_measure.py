"""Counting memory and operations, and fitting lines."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from reproduction.experiments import memory
from reproduction.experiments.step_memory import NETWORKS, build, checkpoint_bound, measure_memory
from reproduction.measure.cpu_time import shortest_seconds
from reproduction.measure.fits import (
    Interval,
    fit_line,
    mean_interval,
    prediction_interval,
    proportion_interval,
    rank_correlation,
    ratio_interval,
    share_interval,
)
from reproduction.measure.memory import bytes_kept, in_fresh_process, peak_memory
from reproduction.measure.operations import OperationCounter
from reproduction.measure.ranks import quantile_ratio, rank_correlation_interval
from reproduction.measure.timing import seconds_of
from reproduction.notation import typeset, typeset_interval
from reproduction.workspace import Workspace


def test_bytes_kept_counts_each_storage_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert bytes_kept(lambda: (x.exp() * x.exp()).sum(), [x]) == 2 * 4000  # two results of exp

    def shared() -> torch.Tensor:
        y = x.exp()
        return (y * y).sum()

    assert bytes_kept(shared, [x]) == 4000  # saved by exp and, twice, by the product
    assert bytes_kept(lambda: x.square().sum()) == 4000
    assert bytes_kept(lambda: x.square().sum(), [x]) == 0


def test_bytes_kept_of_a_linear_layer() -> None:
    layer = nn.Linear(10, 20)
    x = torch.randn(50, 10)
    kept = bytes_kept(lambda: torch.tanh(layer(x)).sum(), [x, *layer.parameters()])
    assert kept == 50 * 20 * 4  # tanh saves its result; the layer saves x and its weight, which exist anyway


def test_bytes_kept_leaves_out_what_was_dropped() -> None:
    x = torch.randn(1000, requires_grad=True)

    def forward() -> torch.Tensor:
        x.exp().sum()  # a graph that nobody keeps
        return x.sin().sum()

    assert bytes_kept(forward, [x]) == 0  # sin saves x


def allocate(megabytes: int, before: int) -> int:
    def work(megabytes: int) -> None:
        block = torch.zeros(megabytes * 2**18)  # float32
        block += 1
        del block
        torch.ones(2**18)

    work(before)  # starts PyTorch's threads
    return peak_memory(lambda: work(megabytes), torch.device("cpu"))


@pytest.mark.parametrize(("megabytes", "before"), [(8, 1), (64, 1), (8, 64)])
def test_peak_memory_sees_what_is_freed_again(megabytes: int, before: int) -> None:
    """And not what was freed before."""
    peak = in_fresh_process(allocate, megabytes, before) / 2**20
    assert megabytes * 0.95 < peak < megabytes * 1.1 + 1


def test_exceptions_of_another_process_come_back() -> None:
    with pytest.raises(InvalidArgumentError, match="unknown network"):
        in_fresh_process(measure_memory, "LSTM", 4, 2, "cpu")


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_evaluate_as_often_as_asked(network: str) -> None:
    body = build(network, 24)
    calls = []
    for module in body.modules():
        if type(module).__name__ in ("Residual", "ConvDynamics"):
            module.register_forward_hook(lambda *_: calls.append(1))
    body(torch.randn(2, 64, 6, 6))
    assert len(calls) == 24 + (network == "interpolating")


def test_memory_orders() -> None:
    """The exact part of notebook 03: constant, a layer's, a state's or a slope's worth more, or logarithmic."""
    state = 2 * 64 * 36 * 4
    kept = {
        n: [in_fresh_process(measure_memory, n, depth, 2, "cpu").bytes_kept for depth in (24, 48, 72)]
        for n in NETWORKS
    }
    for network in ("ResNet", "RK-Net", "recursive_checkpoint", "interpolating"):
        first, second, third = kept[network]
        assert third - second == pytest.approx(second - first, rel=1e-3)
        assert second > 1.8 * first
    assert kept["recursive_checkpoint"][1] - kept["recursive_checkpoint"][0] == 6 * state
    assert kept["ODE-Net"] == [2 * state + 2 * 8] * 3  # states at t0 and t1, and the two times
    assert len(set(kept["reversible"])) == 1
    for depth, log in zip((24, 48, 72), kept["recursive_checkpoint, log"], strict=True):
        assert 2 * state < log <= checkpoint_bound(depth, 2)


def test_seconds_are_those_of_the_work() -> None:
    """From its beginning to its end."""
    seconds = seconds_of(lambda: time.sleep(0.05), torch.device("cpu"))
    assert 0.05 <= seconds < 5


def test_the_shortest_cpu_time_is_that_of_the_fastest_call() -> None:
    """The first of four calls does not count; sleeping takes no CPU time."""
    numbers = iter([0, 400_000, 10, 400_000])

    def work() -> None:
        time.sleep(0.001)
        sum(range(next(numbers)))

    whole = time.process_time()
    assert 0 <= shortest_seconds(work, 3) < (time.process_time() - whole) / 3
    assert next(numbers, None) is None


def test_operations_of_products_are_those_of_pytorchs_own_counter() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    with OperationCounter() as ours, FlopCounterMode(display=False) as theirs:
        (a @ b).T @ a
    assert ours.total == theirs.get_total_flops() == 2 * 3 * 5 * 7 + 2 * 7 * 3 * 5


def test_operations_that_pytorchs_own_counter_leaves_out() -> None:
    a, v = torch.randn(3, 5), torch.randn(5)
    with OperationCounter() as ours, FlopCounterMode(display=False) as theirs:
        h = torch.tanh(a @ v)  # 15 multiplications, 15 additions, 3 of tanh
        h += 2 * h.square()  # 3 each
        (1 - h)[:, None].sum()  # 3 and 3
    assert ours.total == 30 + 3 + 9 + 3 + 3
    assert theirs.get_total_flops() == 0


def test_no_operation_goes_uncounted() -> None:
    with OperationCounter(), pytest.raises(UnknownNameError, match="unknown operator '_linalg_slogdet'"):
        torch.linalg.slogdet(torch.eye(2))


def test_line_and_its_interval() -> None:
    """Against the covariance matrix of numpy's least squares."""
    rng = np.random.default_rng(0)
    x = np.arange(12.0)
    y = 3 * x - 2 + rng.normal(size=12)
    line = fit_line(list(x), list(y))
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    half = scipy.stats.t.ppf(0.975, 10) * np.sqrt(covariance[0, 0])
    assert line.slope == pytest.approx(slope)
    assert line.intercept == pytest.approx(intercept)
    assert (line.low, line.high) == pytest.approx((slope - half, slope + half))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_line_through_constant_and_exact_values() -> None:
    flat = fit_line([1, 2, 3], [5, 5, 5])
    assert (flat.slope, flat.low, flat.high, flat.r2) == (0, 0, 0, 1)
    exact = fit_line([1, 2, 3], [2, 4, 6])
    assert exact.slope == pytest.approx(2)
    assert exact.high - exact.low < 1e-6
    with pytest.raises(InvalidArgumentError, match="three points"):
        fit_line([1, 2], [1, 2])


def test_interval_covers_the_slope_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0, 1, 8)
    covered = 0
    for _ in range(400):
        line = fit_line(list(x), list(x + rng.normal(scale=0.3, size=8)))
        covered += line.low <= 1 <= line.high
    assert 0.92 < covered / 400 < 0.98


def test_means_and_proportions() -> None:
    mean = mean_interval([1.0, 2.0, 3.0])
    assert (mean.estimate, mean.n) == (2.0, 3)
    assert mean.high == pytest.approx(2 + 4.30265 / np.sqrt(3), rel=1e-5)
    assert mean_interval([1.5]) == Interval(1.5, None, None, 1, "mean")
    share = proportion_interval(5, 100)
    assert (share.low, share.high) == pytest.approx((0.0215, 0.1118), abs=1e-4)


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert rank_correlation([1, 2, 3], [7, 7, 7]) == rank_correlation([7, 7, 7], [1, 2, 3]) == 0.0


def test_a_prediction_interval_holds_the_next_run() -> None:
    """Over many draws of six values, 95 % of the intervals of five hold the sixth."""
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 6))
    found = [prediction_interval(list(values)) for values in draws[:, :-1]]
    inside = [one.low <= last <= one.high for one, last in zip(found, draws[:, -1], strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)
    assert found[0].estimate == pytest.approx(draws[0, :-1].mean())
    alone = prediction_interval([1.0])
    assert (alone.low, alone.high, alone.n, alone.method) == (None, None, 1, "prediction")


def test_shares_stay_between_zero_and_one() -> None:
    found = share_interval([99, 100, 80, 100, 97], [100] * 5)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.estimate < found.high < 1
    logits = np.log((np.array([99, 100, 80, 100, 97]) + 0.5) / (np.array([1, 0, 20, 0, 3]) + 0.5))
    low, high = scipy.stats.t.interval(0.95, 4, logits.mean(), scipy.stats.sem(logits))
    assert (found.low, found.high) == pytest.approx((1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))))
    mirrored = share_interval([1, 0, 20, 0, 3], [100] * 5)
    assert mirrored.low == pytest.approx(1 - found.high)


def test_shares_that_do_not_differ_have_the_interval_of_all_trials() -> None:
    assert share_interval([50, 50], [50, 50]) == proportion_interval(100, 100)
    assert share_interval([7], [9]) == proportion_interval(7, 9)
    for hits, totals in (([3], [2]), ([-1], [2]), ([1, 1], [2])):
        with pytest.raises(InvalidArgumentError, match="hits must be as many as totals"):
            share_interval(hits, totals)


def test_an_interval_as_a_multiple() -> None:
    assert Interval(2.0, 1.0, 4.0, 3, "median").over(2.0) == Interval(1.0, 0.5, 2.0, 3, "median")
    assert Interval(2.0, None, None, 1).over(4.0) == Interval(0.5, None, None, 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.0, "0"), (1.0, "1"), (-0.0123456, "−0.0123"), (0.001, "0.001"), (123.456, "123"), (1234.56, "1235")),
        *(
            (99499.4, "99499"),
            (99999.4, "10⁵"),
            (1e5, "10⁵"),
            (2.5e17, "2.5·10¹⁷"),
            (1e-6, "10⁻⁶"),
            (-3.21e-9, "−3.21·10⁻⁹"),
        ),
        *((-1e-6, "−10⁻⁶"), (np.inf, "∞"), (-np.inf, "−∞"), (9.9999e-4, "0.001"), (1 / 3, "0.333")),
    ],
)
def test_numbers_as_they_are_written(number: float, text: str) -> None:
    assert typeset(number) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.123, 0.1, 0.146), "0.123 [0.100, 0.146]"),
        ((-0.0133, -0.126, 0.0987), "−0.01 [−0.13, 0.10]"),
        ((52.4, -2.3, 98), "52 [−2, 98]"),
        ((2.90516, 2.90488, 2.90543), "2.905 [2.905, 2.905]"),
        ((0.0735, 0.0162, 0.334), "0.0735 [0.0162, 0.334]"),
        ((np.inf, 3.0, np.inf), "∞ [3, ∞]"),
        ((1e-7, 2e-8, 1.8e-7), "10⁻⁷ [2·10⁻⁸, 1.8·10⁻⁷]"),
        ((0.5, None, None), "0.5"),
        ((0.5, 0.5, 0.5), "0.5"),
    ],
)
def test_intervals_have_equal_decimals(numbers: tuple[float, float | None, float | None], text: str) -> None:
    assert typeset_interval(*numbers) == text


def test_interval_of_a_rank_correlation() -> None:
    # Fisher's z of 1/2 is log(3)/2; 1.06 / 106 is a hundredth.
    x = list(range(109))
    y = np.random.default_rng(2).permutation(109).tolist()
    found = rank_correlation_interval(x, y)
    z = np.arctanh(rank_correlation(x, y))
    assert (found.low, found.high) == pytest.approx((np.tanh(z - 0.195996), np.tanh(z + 0.195996)), abs=1e-5)
    assert found.n == 109
    assert rank_correlation_interval(x, x[::-1]).low == -1
    with pytest.raises(InvalidArgumentError, match="four points"):
        rank_correlation_interval([1, 2, 3], [1, 2, 3])


def test_interval_covers_a_rank_correlation_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(0.25)  # of normal values that are correlated by one half
    covered = 0
    for _ in range(500):
        x, noise = generator.standard_normal((2, 60))
        found = rank_correlation_interval(x.tolist(), (0.5 * x + np.sqrt(0.75) * noise).tolist())
        covered += found.low < truth < found.high
    assert 0.92 < covered / 500 < 0.98


def test_ratio_of_two_quantiles() -> None:
    found = quantile_ratio(list(range(1, 1001)), 0.05, 0.95)
    assert found.estimate == 950 / 50
    # A binomial count of 50 in 1000 strays by 7; 98.75 % lie within 2.5 times as much.
    assert found.low == pytest.approx(932.5 / 67.5, rel=0.04)
    assert found.high == pytest.approx(967.5 / 32.5, rel=0.08)
    assert quantile_ratio([7] * 200, 0.05, 0.95).high == 1
    with pytest.raises(InvalidArgumentError, match="20 values do not enclose"):
        quantile_ratio(list(range(1, 21)), 0.05, 0.95)


def test_interval_covers_a_ratio_of_quantiles() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        found = quantile_ratio(generator.exponential(size=300).tolist(), 0.05, 0.95)
        covered += found.low <= np.log(0.05) / np.log(0.95) <= found.high
    assert covered / 300 > 0.95


def test_a_ratio_and_its_inverse_say_the_same() -> None:
    ratios = [0.5, 2.0, 3.0]
    there, back = ratio_interval(ratios), ratio_interval([1 / x for x in ratios])
    assert there.estimate == pytest.approx(3 ** (1 / 3))
    assert there.low == pytest.approx(1 / back.high)
    assert 0 < there.low < there.estimate < there.high
    assert ratio_interval([2.0]) == Interval(2.0, None, None, 1, "geometric mean")
    with pytest.raises(InvalidArgumentError, match="positive"):
        ratio_interval([1.0, 0.0])


SMALL: dict[str, Any] = {
    "evaluations": [24],
    "batch": 1,
    "repeats": 1,
    "tolerances": [1e-1],
    "trade_off_batch": 1,
    "trade_off_repeats": 1,
    "device": "cpu",
}


def test_memory_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "NETWORKS", ("ODE-Net", "recursive_checkpoint, log"))
    work = Workspace("03_memory", "quick", tmp_path, tmp_path)
    program = dict(vars(sys.modules["__main__"]))
    found = memory.results(work, **SMALL)
    assert vars(sys.modules["__main__"]) == program
    folder = tmp_path / "results" / "quick" / "03_memory"

    def made() -> dict[str, int]:
        return {x.relative_to(folder).as_posix(): x.stat().st_mtime_ns for x in folder.rglob("*.csv")}

    before = made()
    assert set(before) == {"memory/ODE-Net.csv", "memory/recursive_checkpoint-log.csv", "trade_offs.csv"}
    again = memory.results(Workspace("03_memory", "quick", tmp_path, tmp_path), **SMALL)
    assert made() == before
    assert again.memory.equals(found.memory)
    assert again.trade_offs.equals(found.trade_offs)

    assert list(found.memory["network"]) == ["ODE-Net", "recursive_checkpoint, log"]
    expected = in_fresh_process(measure_memory, "ODE-Net", 24, 1, "cpu")
    assert found.memory["bytes_kept"].iloc[0] == expected.bytes_kept
    assert list(found.trade_offs["choice"]) == list(memory.CHOICES)
    columns = ["bytes_kept", "gradient_error", "nfe", "backward_nfe"]
    rows = pd.DataFrame(memory.trade_offs([1e-1], 1, 1, "cpu"))
    assert found.trade_offs[columns].equals(rows[columns])

    memory.results(work, **{**SMALL, "tolerances": [3e-1]})
    assert {name for name, time in made().items() if time != before[name]} == {"trade_offs.csv"}
