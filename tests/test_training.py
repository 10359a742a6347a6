"""Training: what is recorded, and that being killed changes nothing."""

import csv
import io
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from neural_ode import NeuralODEWarning, NonFiniteError
from neural_ode.errors import FileError, InvalidArgumentError, UnknownNameError
from neural_ode.solution import Statistics
from reproduction import meaning
from reproduction.data.mnist import Mnist, Split
from reproduction.experiments.mnist import step_costs
from reproduction.models.mnist import mnist_net
from reproduction.results import Run, Store
from reproduction.training.adam import fit_with_adam
from reproduction.training.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from reproduction.training.flows import Likelihood, train_continuous
from reproduction.training.loop import Fit, fit, history_csv, read_history
from reproduction.training.mnist import (
    classifier_run,
    classifier_task,
    error_rate,
    learning_rate,
    load_classifier,
    train_classifier,
)
from reproduction.training.weights import WeightsError, load_weights, run_files, save_run

TRAINING = {"epochs": 2, "batch_size": 8, "peak_lr": 0.05, "schedule": "one-cycle", "max_shift": 1}
SOLVER = {"rtol": 1e-2, "atol": 1e-2}


def synthetic() -> Mnist:
    """A few images in the shapes of MNIST."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(256, (n, 1, 28, 28), generator=generator).to(torch.uint8)
        return Split(images, torch.randint(10, (n,), generator=generator))

    return Mnist(split(32), split(20), split(20))


def regression(steps: int = 20, **changes) -> Fit:
    """A linear model with dropout, so that the state of the random numbers matters."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = {
        "model": model,
        "loss": lambda model, batch: (model(batch) - batch.sum(1, keepdim=True)).square().mean(),
        "batch": lambda step: torch.randn(16, 4, generator=torch.Generator().manual_seed(step)),
        "optimizer": optimizer,
        "scheduler": LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        "steps": steps,
        "epochs": steps // 5,
        "evaluate": lambda model: {"size": sum(p.abs().sum().item() for p in model.parameters())},
        "settings": {"name": "regression"},
        "code": Path(__file__),
        "label": "regression",
    }
    return Fit(**{**settings, **changes})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def without_time(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_history() -> None:
    task = regression()
    history = fit(task)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert set(history[0]) == {"epoch", "loss", "size", "nfe_forward", "nfe_backward", "seconds"}
    assert history[-1]["loss"] < history[0]["loss"]
    assert [row["seconds"] for row in history] == sorted(row["seconds"] for row in history)
    rows = list(csv.DictReader(io.StringIO(history_csv(history))))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]


def test_the_loop_is_gradient_descent_written_out() -> None:
    """A weight with the loss (w - x)², momentum, a learning rate of its own for each step, and means of epochs."""
    targets, rates, momentum = [1.0, -2.0, 0.5, 3.0], [0.2, 0.1, 0.05, 0.025], 0.9
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = SGD(model.parameters(), lr=rates[0], momentum=momentum)
    w, speed, losses, after = model.weight.item(), 0.0, [], []
    for x, rate in zip(targets, rates, strict=True):
        losses.append((w - x) ** 2)
        speed = momentum * speed + 2 * (w - x)
        w -= rate * speed
        after.append(w)
    task = Fit(
        model=model,
        loss=lambda model, x: (model.weight - x).square().sum(),
        batch=targets.__getitem__,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 0.5**step),
        steps=4,
        epochs=2,
        evaluate=lambda model: {"weight": model.weight.item(), "training": float(model.training)},
        settings={},
        code=Path(__file__),
        label="descent",
    )
    history = fit(task)
    assert [row["weight"] for row in history] == pytest.approx(after[1::2], rel=1e-12)
    assert [row["loss"] for row in history] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-12)
    assert [row["training"] for row in history] == [0, 0]
    assert not model.training


def test_adam_with_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate of each step, as many steps as asked for, and as many rows of history."""
    rates: list[float] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    model, training = nn.Linear(1, 1), {"steps": 40, "lr": 0.2}
    history = fit_with_adam(
        *(model, lambda net, x: net(x).square().sum(), lambda step: torch.ones(1, 1), lambda net: {}),
        *(training, {}, Path(__file__), "cosine"),
    )
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * k / 40)) for k in range(40)], abs=1e-12)
    assert len(history) == 20


def test_the_evaluations_in_the_history_are_those_of_each_way() -> None:
    task = regression()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model.stats = Statistics(nfe=7, backward=Statistics(nfe=11))
        return model(batch).square().mean()

    rows = fit(regression(loss=loss))
    assert [(row["nfe_forward"], row["nfe_backward"]) for row in rows] == [(7, 11)] * 4
    assert {(row["nfe_forward"], row["nfe_backward"]) for row in fit(task)} == {(0, 0)}


# How many steps are made -----------------------------------------------------------------------------------------


def counted(made: list[int]):
    """A function of the step that notes it."""

    def batch(step: int) -> Tensor:
        made.append(step)
        return torch.full((2, 1), float(step))

    return batch


@pytest.mark.parametrize("steps", [1, 7, 20, 39, 150])
def test_as_many_steps_are_made_as_were_asked_for(steps: int) -> None:
    net, made = nn.Linear(1, 1), []
    training = {"steps": steps, "lr": 0.1}
    ends = []

    def evaluate(net: nn.Module) -> dict[str, float]:
        ends.append(len(made))
        return {}

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        return net(x).mean() * 0 + x.mean()

    history = fit_with_adam(net, loss, counted(made), evaluate, training, {}, Path(__file__), "net")
    assert made == list(range(steps))
    # Rows at even distances, the last one at the end, each with the mean over its own steps.
    assert len(history) == min(20, steps)
    assert ends[-1] == steps
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert max(lengths) - min(lengths) <= 1
    assert [row["loss"] for row in history] == [
        pytest.approx(sum(range(b - n, b)) / n) for n, b in zip(lengths, ends, strict=True)
    ]


@pytest.mark.parametrize(("iterations", "records"), [(7, 3), (2, 5)])
def test_flows_make_every_iteration(iterations: int, records: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    drawn = Likelihood.inputs
    monkeypatch.setattr(Likelihood, "inputs", lambda self, n, seed: (made.append(seed[1]), drawn(self, n, seed))[1])
    training = {"iterations": iterations, "batch": 4, "rate": 0.01, "hidden": 4, "annealing": 0.0, "span": 1.0}
    how = {"rtol": 1e-2, "atol": 1e-2}
    _, history = train_continuous(Likelihood("two moons"), 2, 0, training | {"records": records}, how)
    assert made == list(range(iterations))
    assert len(history) == min(records, iterations)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"epochs": 0}, {"steps": 3, "epochs": 4}])
def test_a_training_without_a_step_is_refused(changes: dict) -> None:
    with pytest.raises(InvalidArgumentError, match=r"regression: .* a step for each, got steps=\d+, epochs=\d"):
        regression(**changes)


def test_an_interruption_changes_no_uneven_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    expected = fit(regression(steps=20, epochs=3))
    made = regression().batch

    def until(step: int) -> Tensor:
        if step == 14:
            raise KeyboardInterrupt
        return made(step)

    with pytest.raises(KeyboardInterrupt):
        fit(regression(steps=20, epochs=3, batch=until), tmp_path / "run.pt")
    assert without_time(fit(regression(steps=20, epochs=3), tmp_path / "run.pt")) == without_time(expected)


# Being killed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 19])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(stop: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("reproduction.training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    whole = regression()
    expected = fit(whole)

    broken = regression()
    batch = broken.batch

    def until(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return batch(step)

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(regression(batch=until), checkpoint)
    torch.manual_seed(12345)  # another process has other random numbers
    resumed = regression()
    torch.manual_seed(54321)
    history = fit(resumed, checkpoint)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert without_time(history) == without_time(expected)


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    first = regression()
    expected = fit(first, tmp_path / "run.pt")

    def never(step: int) -> Tensor:
        raise AssertionError("trained again")

    second = regression(batch=never)
    assert fit(second, tmp_path / "run.pt") == expected
    assert torch.equal(weights(second.model), weights(first.model))


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    fit(regression(), tmp_path / "run.pt")
    steps = []

    def batch(step: int) -> Tensor:
        steps.append(step)
        return torch.randn(16, 4)

    fit(regression(batch=batch, settings={"name": "another"}), tmp_path / "run.pt")
    assert steps == list(range(20))


def test_fingerprint_depends_on_settings_and_code(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("from reproduction.training.loop import fit\nx = 1\n")
    assert fingerprint({"a": 1, "b": 2}, code) == fingerprint({"b": 2, "a": 1}, code)
    assert fingerprint({"a": 1}, code) != fingerprint({"a": 2}, code)
    first = fingerprint({}, code)
    code.write_text("# Why.\nfrom reproduction.training.loop import fit\n\nx = (1)\n")
    assert fingerprint({}, code) == first
    found = {first}
    for imported, x in (
        ("reproduction.training.loop import fit", 2),
        ("reproduction.claims import decide as fit", 1),
    ):
        code.write_text(f"from {imported}\nx = {x}\n")
        found.add(fingerprint({}, code))
    assert len(found) == 3


def test_fingerprint_depends_on_imported_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, helper = tmp_path / "code.py", tmp_path / "helper.py"
    code.write_text("x = 1\n")
    monkeypatch.setattr(meaning, "imported_modules", lambda path: {helper})
    found = []
    for text in ("y = 1\n", "y = 2\n", '"""Of another kind."""\ny = 1  # of course\n'):
        helper.write_text(text)
        found.append(fingerprint({}, code))
    assert len(set(found)) == 2
    assert found[0] == found[2]


def test_fingerprint_depends_on_how_the_solver_behaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, numerics = tmp_path / "code.py", tmp_path / "numerics.json"
    code.write_text("x = 1\n")
    monkeypatch.setattr(meaning, "NUMERICS", numerics)
    found = []
    for text in ('{"steps": 7}', '{"steps": 8}', '{ "steps":\n7 }'):
        numerics.write_text(text)
        found.append(fingerprint({}, code))
    assert len(set(found)) == 2
    assert found[0] == found[2]


def test_schedules() -> None:
    rates = {}
    for schedule in ("one-cycle", "stairs"):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = learning_rate(schedule, optimizer, 160)
        rates[schedule] = []
        for _ in range(160):
            rates[schedule].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert max(rates["one-cycle"]) == pytest.approx(0.1, rel=1e-3)
    assert rates["one-cycle"][-1] < 1e-4
    expected = [0.1] * 60 + [0.01] * 40 + [0.001] * 40 + [0.0001] * 20
    assert rates["stairs"] == pytest.approx(expected)
    with pytest.raises(UnknownNameError, match="stairs"):
        learning_rate("cosine", optimizer, 160)


def test_checkpoints_replace_each_other_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.pt"
    assert load_checkpoint(path, "run") is None
    save_checkpoint(path, "run", {"model": {"a": torch.ones(3)}})
    save_checkpoint(path, "run", {"model": {"a": torch.zeros(3)}})
    loaded = load_checkpoint(path, "run")
    assert loaded is not None
    assert torch.equal(loaded["model"]["a"], torch.zeros(3))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"garbage", "half", "other"])
def test_a_damaged_checkpoint_counts_as_none(damage, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    expected = fit(regression(), path)
    if damage == "other":
        torch.save([1, 2], path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    with pytest.warns(NeuralODEWarning, match=r"run\.pt is damaged .*: training starts anew"):
        assert without_time(fit(regression(), path)) == without_time(expected)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, "run", {"model": {"a": torch.full((8,), 0.375)}})
    assert load_checkpoint(path, "run") is not None
    content = bytearray(path.read_bytes())
    content[bytes(content).index(torch.full((8,), 0.375).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.warns(NeuralODEWarning, match=r"run\.pt is damaged \(its checksum differs\): training starts anew"):
        assert load_checkpoint(path, "run") is None


def test_a_checkpoint_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="only tensors, numbers, text"):
        save_checkpoint(tmp_path / "run.pt", "run", {"model": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("schedule", ["one-cycle", "stairs"])
def test_every_schedule_can_be_resumed(schedule: str, tmp_path: Path) -> None:
    how = (synthetic(), TRAINING | {"schedule": schedule}, SOLVER, "cpu", tmp_path / "run.pt")
    _, history = train_classifier("MLP", 0, *how)
    assert train_classifier("MLP", 0, *how)[1] == history  # the seconds too: nothing was trained


# Weights and histories -------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a small network, with their history."""
    torch.manual_seed(0)
    history = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": math.inf}]
    save_run(nn.Linear(3, 2), history, tmp_path, "net")
    return tmp_path / "net.safetensors"


def test_no_bit_of_the_weights_can_flip_unnoticed(saved: Path) -> None:
    """Of the tensors, nor of their names, types and shapes."""
    content = saved.read_bytes()
    load_weights(nn.Linear(3, 2), saved)
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == 4 * (3 * 2 + 2)
    described = content.index(b'"bias"')
    assert described < header
    for place in (*range(8), *range(described, header), *range(header, len(content))):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            if content[place : place + 1].isspace() and damaged[place : place + 1].isspace():
                continue  # white space behind the header says nothing
            saved.write_bytes(damaged)
            with pytest.raises(WeightsError, match=r"net\.safetensors .*(git checkout|train again)"):
                load_weights(nn.Linear(3, 2), saved)


def test_the_history_is_there_before_the_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the weights finds what they are of beside them."""
    written = []
    monkeypatch.setattr(
        "reproduction.training.weights.write_atomically", lambda file, content: written.append(file)
    )
    save_run(nn.Linear(1, 1), [], saved.parent, "net")
    assert [file.suffix for file in written] == [".csv", ".safetensors"]


@pytest.mark.parametrize("damage", [b"", b"plain text", b"\x00" * 64, "half", "no checksum"])
def test_damaged_weights_are_named(damage, saved: Path) -> None:
    content = saved.read_bytes()
    if damage == "no checksum":
        damage = safetensors.torch.save(safetensors.torch.load(content), {"run": "another one"})
    saved.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    with pytest.raises(WeightsError, match=r"net\.safetensors .*git checkout.*train again"):
        load_weights(nn.Linear(3, 2), saved)


def test_a_type_that_would_be_converted_is_noticed(saved: Path) -> None:
    """The bytes of floats, taken for integers, are numbers too."""
    saved.write_bytes(saved.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(WeightsError, match="checksum differs"):
        load_weights(nn.Linear(3, 2), saved)


def test_missing_weights_and_those_of_another_network_are_named(saved: Path) -> None:
    with pytest.raises(WeightsError, match=r"net\.safetensors does not hold the weights of this Sequential"):
        load_weights(nn.Sequential(nn.Linear(3, 2)), saved)
    saved.unlink()
    with pytest.raises(WeightsError, match=r"net\.safetensors does not exist: restore it"):
        load_classifier("MLP", saved)


@pytest.mark.parametrize(
    "text", ["", "\n", "words", "epoch,loss\n", "epoch,loss\n1\n", "epoch,loss\n1,much\n", b"\xff\xfe"]
)
def test_a_damaged_history_is_no_empty_one(text, tmp_path: Path) -> None:
    file = tmp_path / "net.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileError, match=r"net\.csv is damaged .*: restore it, or delete it and the weights"):
        read_history(file)
    with pytest.raises(FileError, match="does not exist"):
        read_history(tmp_path / "another.csv")


def test_a_history_is_what_was_written(saved: Path) -> None:
    assert read_history(saved.with_suffix(".csv")) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": math.inf}]
    saved.with_suffix(".csv").write_text(history_csv([]))
    assert read_history(saved.with_suffix(".csv")) == []


def test_a_diverging_run_says_so() -> None:
    task = regression(loss=lambda model, batch: model(batch).mean() * float("nan"))
    with pytest.raises(NonFiniteError, match="regression is nan at step 0: lower the learning rate"):
        fit(task)


@pytest.mark.parametrize("name", ["MLP", "ODE-Net"])
def test_train_classifier(name: str, tmp_path: Path) -> None:
    data = synthetic()
    model, history = train_classifier(name, 0, data, TRAINING, SOLVER)
    assert len(history) == 2
    assert {"loss", "validation_error"} < set(history[0])
    solves = name == "ODE-Net"
    assert (history[0]["nfe_forward"] > 0) == (history[0]["nfe_backward"] > 0) == solves
    files = run_files(model, history)
    assert set(files) == {".csv", ".safetensors"}
    save_run(model, history, tmp_path, "run")
    assert {suffix: (tmp_path / f"run{suffix}").read_bytes() for suffix in files} == files
    loaded = safetensors.torch.load_file(tmp_path / "run.safetensors")
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    assert read_history(tmp_path / "run.csv") == history
    again, _ = train_classifier(name, 0, data, TRAINING, SOLVER)
    assert torch.equal(weights(again), weights(model))
    other, _ = train_classifier(name, 1, data, TRAINING, SOLVER)
    assert not torch.equal(weights(other), weights(model))


def test_how_a_classifier_is_trained() -> None:
    """With momentum; the history has the errors of the validation split, and the test split is not looked at."""
    data = synthetic()
    splits = Mnist(data.train, data.validation, None)  # type: ignore[arg-type]
    task = classifier_task("MLP", 0, splits, TRAINING | {"schedule": "stairs"}, SOLVER)
    fit(task)
    assert task.optimizer.param_groups[0]["momentum"] == 0.9
    with torch.no_grad():
        logits = task.model(data.validation.images.float() / 255)
    wrong = (logits.argmax(1) != data.validation.labels).double().mean().item()
    assert task.evaluate(task.model) == pytest.approx({"validation_error": 100 * wrong})


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run MLP-0 of notebook 04 on a few images, as a result that is kept."""
    monkeypatch.setattr("reproduction.training.mnist.load_splits", lambda data, sizes: synthetic())
    sizes = {"train_size": 32, "validation_size": 20}

    def train(**changes) -> Run:
        store = Store([tmp_path / "results"], tmp_path / "results", tmp_path / "checkpoints", "compute it")
        point = {"network": "MLP", "seed": 0, "training": TRAINING | changes, "solver": SOLVER, **sizes}
        how = {"data": tmp_path, "device": "cpu", "checkpoints": store.checkpoints}
        return store.obtain(classifier_run, {"MLP-0": point}, label="networks", **how)["MLP-0"]

    return train


def test_a_finished_run_is_not_trained_again(train, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(run: Run) -> nn.Module:
        model = mnist_net("MLP").train()
        run.load(model)
        assert not model.training
        return model

    first = train()
    history, kept = read_history(first.file(".csv")), weights(loaded(first))
    with monkeypatch.context() as patch:
        patch.setattr("reproduction.training.mnist.fit", lambda *arguments: pytest.fail("trained again"))
        again = train()
    assert again == first
    assert read_history(again.file(".csv")) == history
    assert torch.equal(weights(loaded(again)), kept)

    changed = train(peak_lr=0.01)
    assert changed.record["settings"]["training"]["peak_lr"] == 0.01
    assert not torch.equal(weights(loaded(changed)), kept)


@pytest.mark.parametrize(("suffix", "left"), [(".safetensors", 0), (".csv", 0), (".csv", 2)])
def test_a_finished_run_that_is_damaged_is_named_and_not_trained_over(
    suffix: str, left: int, train, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = train().file(suffix)
    damaged = b"".join(file.read_bytes().splitlines(keepends=True)[:left])
    file.write_bytes(damaged)
    monkeypatch.setattr("reproduction.training.mnist.fit", lambda *arguments: pytest.fail("trained again"))
    run = train()
    with pytest.raises(FileError, match=rf"MLP-0{suffix} is damaged .*: restore it with `git checkout"):
        run.load(mnist_net("MLP")) if suffix == ".safetensors" else run.table()
    assert file.read_bytes() == damaged


def test_costs_of_a_training_step() -> None:
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    models = {name: mnist_net(name, **SOLVER) for name in ("MLP", "ResNet", "RK-Net", "ODE-Net")}
    found = step_costs(models, images, labels, rounds=2)
    assert list(found) == list(models)
    assert all(cost.seconds > 0 for cost in found.values())
    assert all(p.grad is None for model in models.values() for p in model.parameters())
    kept = {name: cost.bytes_kept for name, cost in found.items()}
    # The perceptron: the hidden layer before and after ReLU (300), log-softmax (10), labels, the loss's weight.
    assert 4 * 4 * (300 + 10) <= kept["MLP"] <= 4 * 4 * (2 * 300 + 2 * 10) + 100
    assert kept["MLP"] < kept["ODE-Net"] < kept["ResNet"] < kept["RK-Net"]


def test_error_rate_counts_mistakes() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.eye(10)[3])

        def forward(self, images: Tensor) -> Tensor:
            return self.bias.expand(len(images), -1)

    split = Split(torch.zeros(40, 1, 28, 28, dtype=torch.uint8), torch.arange(40) % 10)
    assert error_rate(Constant(), split, batch_size=7) == pytest.approx(90.0)


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from pathlib import Path
    from test_training import SOLVER, synthetic, weights
    import reproduction.training.loop as loop
    from reproduction.training.mnist import train_classifier

    loop.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    training = {{"epochs": 4, "batch_size": 8, "peak_lr": 0.05, "schedule": "one-cycle", "max_shift": 1}}
    model, _ = train_classifier("ODE-Net", 0, synthetic(), training, SOLVER, checkpoint=Path({checkpoint!r}))
    torch.save(weights(model), {result!r})
"""


@pytest.mark.slow
def test_killed_by_the_system_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at arbitrary moments: the weights are those of a run in peace, bit for bit."""

    def start(name: str) -> subprocess.Popen:
        script = SCRIPT.format(
            tests=str(Path(__file__).parent),
            checkpoint=str(tmp_path / name / "run.pt"),
            result=str(tmp_path / f"{name}.weights"),
        )
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE)

    assert start("calm").wait(120) == 0
    checkpoint = tmp_path / "killed" / "run.pt"
    kills = 0
    for patience in (0.05, 0.35, 0.75):
        process = start("killed")
        begun = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > begun):
            time.sleep(0.01)
        time.sleep(patience)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(60)
    assert kills >= 1
    assert start("killed").wait(120) == 0
    assert torch.equal(torch.load(tmp_path / "killed.weights"), torch.load(tmp_path / "calm.weights"))
