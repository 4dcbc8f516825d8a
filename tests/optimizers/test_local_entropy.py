"""The consistent rule, pathwise: against the naive loop, exact recursions on quadratics, special cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import LocalEntropyConfig, MlpConfig, OptimizerConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.optimizers.sgd import Sgd
from tests import reference
from tests.optimizers.driver import coefficients, drive, given, last, of_runs, trajectory, wavy

# Every value away from 0 and 1, three runs that differ in all of them; gamma_min is reached by two.
HYPER = {
    "lr": [0.08, 0.05, 0.11],
    "nu": [0.03, 0.3, 0.007],
    "gamma": [0.4, 0.9, 2.3],
    "outer_step": [0.6, 0.35, 0.85],
    "ema_weight": [0.25, 0.6, 0.4],
    "gamma_scoping": [0.13, 0.07, 0.31],
    "gamma_min": [0.27, 0.3, 1.5],
    "momentum": [0.5, 0.3, 0.7],
    "outer_momentum": [0.4, 0.2, 0.6],
    "weight_decay": [0.2, 0.05, 0.33],
}
SCHEDULE = {"warmup": [0.2, 0.3, 0.1], "final": [0.3, 0.6, 0.1]}
RUNS, D, CYCLES = 3, 4, 6


def assert_is_the_naive_loop(rule: LocalEntropy) -> None:
    """Run three runs as one fleet and each of them through tests/reference.py."""
    steps = CYCLES * (rule.burn_in + rule.inner_steps)
    x = reference.start(RUNS, D)
    xi = np.random.default_rng(3).normal(size=(RUNS, steps + 1, D))
    states = drive(
        rule,
        HYPER,
        torch.from_numpy(x),
        of_runs([wavy(i) for i in range(RUNS)]),
        steps,
        given(xi) if rule.noisy else None,
        schedule="cosine",
        schedule_hyper=SCHEDULE,
    )
    actual = trajectory(states)
    for i in range(RUNS):
        hyper: dict[str, Any] = {name: values[i] for name, values in HYPER.items()}
        switches = {
            "nu": rule.noisy,
            "momentum": rule.has_momentum,
            "outer_momentum": rule.has_outer_momentum,
            "weight_decay": rule.has_weight_decay,
        }
        hyper |= {name: 0.0 for name, on in switches.items() if not on}
        expected = reference.local_entropy(
            x[i],
            wavy(i),
            xi[i],
            reference.warm_cosine(hyper.pop("lr"), SCHEDULE["warmup"][i], SCHEDULE["final"][i], steps),
            cycles=CYCLES,
            inner_steps=rule.inner_steps,
            burn_in=rule.burn_in,
            inner_start=rule.inner_start,
            averaging=rule.averaging,
            integrator=rule.integrator,
            nu_annealing=rule.nu_annealing,
            nesterov=rule.nesterov,
            **hyper,
        )
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-12, err_msg=f"run {i}")


@pytest.mark.parametrize("nu_annealing", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("integrator", ["em", "leimkuhler_matthews"])
@pytest.mark.parametrize("inner_start", ["warm", "reset"])
@pytest.mark.parametrize("averaging", ["uniform", "ema", "last"])
@pytest.mark.parametrize(
    ("momentum", "outer_momentum", "nesterov"),
    [(m, outer, n) for m in (False, True) for outer in (False, True) for n in (False, True) if m or outer or not n],
)
def test_every_run_of_a_fleet_is_the_naive_loop(
    averaging: Any,
    inner_start: Any,
    integrator: Any,
    nu_annealing: Any,
    momentum: bool,
    outer_momentum: bool,
    nesterov: bool,
) -> None:
    assert_is_the_naive_loop(
        LocalEntropy(
            inner_steps=3,
            burn_in=2,
            inner_start=inner_start,
            averaging=averaging,
            integrator=integrator,
            nu_annealing=nu_annealing,
            noisy=not (momentum and (nesterov or integrator != "em")),  # combinations that the configuration refuses
            has_momentum=momentum,
            has_outer_momentum=outer_momentum,
            has_weight_decay=True,
            nesterov=nesterov,
        )
    )


@pytest.mark.parametrize("averaging", ["uniform", "ema", "last"])
@pytest.mark.parametrize("inner_start", ["warm", "reset"])
@pytest.mark.parametrize(("inner_steps", "burn_in"), [(1, 0), (1, 3), (5, 0)])
@pytest.mark.parametrize(("noisy", "weight_decay"), [(True, False), (False, True)])
def test_cycles_of_any_length_are_the_naive_loop(
    averaging: Any, inner_start: Any, inner_steps: int, burn_in: int, noisy: bool, weight_decay: bool
) -> None:
    assert_is_the_naive_loop(
        LocalEntropy(
            inner_steps=inner_steps,
            burn_in=burn_in,
            inner_start=inner_start,
            averaging=averaging,
            integrator="leimkuhler_matthews",
            noisy=noisy,
            has_weight_decay=weight_decay,
        )
    )


# Quadratics: F = a (x - c)^2 / 2, runs that differ in a --------------------------------------------------------------

QUADRATIC: dict[str, list[float]] = {
    "lr": [0.1, 0.23, 0.04],
    "nu": [0.2, 0.05, 0.6],
    "gamma": [0.5, 2.0, 0.3],
    "outer_step": [0.2, 0.7, 0.45],
    "ema_weight": [0.3, 0.6, 0.15],
    "gamma_scoping": [0.0] * 3,
    "gamma_min": [0.0] * 3,
    "momentum": [0.0] * 3,
    "outer_momentum": [0.0] * 3,
    "weight_decay": [0.0] * 3,
}
A = [1.5, 0.4, 3.0]
C = 0.7


def quadratic_gradient(k: int, at: Tensor) -> Tensor:
    return torch.tensor(A, dtype=torch.float64)[:, None] * (at - C)


def of_run(i: int) -> tuple[float, float, float, float, float]:
    """Return a, gamma, eta, r and T."""
    return A[i], QUADRATIC["gamma"][i], QUADRATIC["lr"][i], QUADRATIC["outer_step"][i], 2 * QUADRATIC["nu"][i]


@pytest.mark.parametrize(("L", "b"), [(10, 0), (4, 0), (1, 0), (6, 3), (1, 5)])
@pytest.mark.parametrize("averaging", ["uniform", "last"])
def test_warm_cycles_are_the_affine_recursion(averaging: Any, L: int, b: int) -> None:
    rule = LocalEntropy(inner_steps=L, burn_in=b, averaging=averaging, noisy=False)
    x = torch.full((3, 1), 1.9, dtype=torch.float64)
    path = trajectory(drive(rule, QUADRATIC, x, quadratic_gradient, 8 * (b + L)))
    for i in range(3):
        a, gamma, eta, r, _ = of_run(i)
        step = reference.cycle_matrix(a, gamma, eta, L, b, r, averaging)
        expected = np.array([1.9 - C, 1.9 - C])
        for cycle in range(1, 9):
            expected = step @ expected
            np.testing.assert_allclose(path[i, cycle * (b + L) - 1, :, 0] - C, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("L", "b"), [(10, 0), (4, 0), (1, 0), (6, 3)])
@pytest.mark.parametrize("averaging", ["uniform", "last"])
def test_each_normal_number_enters_a_cycle_with_its_weight(averaging: Any, L: int, b: int) -> None:
    rule = LocalEntropy(inner_steps=L, burn_in=b, averaging=averaging)
    impulses = torch.eye(b + L, dtype=torch.float64)  # coordinate j receives noise at evaluation j alone
    x = torch.full((3, b + L), C, dtype=torch.float64)
    state = last(drive(rule, QUADRATIC, x, quadratic_gradient, b + L, lambda k: impulses[k - 1].expand(3, -1)))
    for i in range(3):
        a, gamma, eta, r, T = of_run(i)
        expected = math.sqrt(2 * T * eta) * reference.cycle_noise(a, gamma, eta, L, b, r, averaging)
        np.testing.assert_allclose(torch.stack([state.x[i], state.y[i]]).numpy() - C, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("averaging", "L", "b"), [("uniform", 10, 0), ("uniform", 4, 7), ("last", 5, 2), ("ema", 6, 0), ("ema", 1, 0)]
)
def test_reset_shrinks_the_gradient_by_theta(averaging: Any, L: int, b: int) -> None:
    rule = LocalEntropy(inner_steps=L, burn_in=b, inner_start="reset", averaging=averaging, noisy=False)
    x = torch.full((3, 1), 1.9, dtype=torch.float64)
    path = trajectory(drive(rule, QUADRATIC, x, quadratic_gradient, 5 * (b + L)))
    for i in range(3):
        a, gamma, eta, r, _ = of_run(i)
        p, rho = 1 / (1 + a * gamma), 1 - eta * (a + 1 / gamma)
        alpha = QUADRATIC["ema_weight"][i]
        q = 1 - alpha
        theta = {
            "uniform": rho ** (b + 1) * (1 - rho**L) / (L * (1 - rho)),
            "last": rho ** (b + L),
            "ema": q**L + alpha * rho * (q**L - rho**L) / (q - rho),
        }[averaging]
        h = r * gamma
        expected = (1.9 - C) * (1 - h * a * p * (1 - theta)) ** np.arange(1, 6)
        np.testing.assert_allclose(path[i, b + L - 1 :: b + L, 0, 0] - C, expected, rtol=0, atol=1e-12)


# Special cases -------------------------------------------------------------------------------------------------------


def test_without_viscosity_it_is_the_proximal_point_method() -> None:
    hyper = QUADRATIC | {"lr": [0.2], "gamma": [0.5], "outer_step": [1.0]}
    hyper = {name: values[:1] for name, values in hyper.items()}
    for inner_start in ("warm", "reset"):
        rule = LocalEntropy(inner_steps=1, burn_in=199, inner_start=inner_start, noisy=False)
        x = torch.tensor([[1.2]], dtype=torch.float64)
        path = trajectory(drive(rule, hyper, x, lambda k, y: torch.from_numpy(reference.ripple_slope(y.numpy())), 600))[
            0, 199::200, 0, 0
        ]
        expected = 1.2
        for step in range(3):
            before = expected
            expected = brentq(
                lambda y, before=before: reference.ripple_slope(y) + (y - before) / 0.5, -3, 3, xtol=1e-15
            )
            assert abs(path[step] - expected) < 1e-12
        assert abs(path[2] - 0.94022472329) < 1e-11  # MATH 3


SGD_LIKE: dict[str, Any] = {"inner_steps": 1, "gamma": math.inf, "nu": 0.0, "outer_step": 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("averaging", ["uniform", "last"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(False, False), (True, False), (True, True)])
def test_one_inner_step_without_pull_is_sgd_bit_for_bit(
    averaging: Any, momentum: bool, nesterov: bool, dtype: torch.dtype
) -> None:
    hyper = HYPER | {"gamma": [math.inf] * 3, "outer_step": [1.0] * 3}
    switches: dict[str, Any] = {"has_momentum": momentum, "has_weight_decay": True, "nesterov": nesterov}
    rule = LocalEntropy(inner_steps=1, averaging=averaging, noisy=False, **switches)
    x = torch.from_numpy(reference.start(RUNS, D)).to(dtype)
    wave = of_runs([wavy(i) for i in range(RUNS)])

    def gradient(k: int, at: Tensor) -> Tensor:
        return wave(k, at).to(dtype)

    ours = list(drive(rule, hyper, x, gradient, 50))
    sgd = list(drive(Sgd(**switches), HYPER, x, gradient, 50))
    assert all(torch.equal(a.x, b.x) for a, b in zip(ours, sgd, strict=True))


@pytest.mark.parametrize("compile", ["off", "auto"])
@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
def test_one_inner_step_without_pull_trains_digits_as_sgd_bit_for_bit(seeds: tuple[int, ...], compile: str) -> None:
    def train(optimizer: OptimizerConfig) -> Tensor:
        trainer = TrainerConfig(budget=120, batch_size=40, compile=compile, clip_norm=1.5)
        model = MlpConfig(width=16, depth=1)
        fleet = prepare(
            [TrainConfig(model=model, optimizer=optimizer, trainer=trainer, seed=seed) for seed in seeds]
        ).fleet()
        start = fleet.x.clone()
        fleet.advance(120)
        assert not torch.equal(fleet.x, start)
        return fleet.x

    ours = train(LocalEntropyConfig(lr=0.07, weight_decay=0.01, momentum=0.6, **SGD_LIKE))
    assert torch.equal(ours, train(SgdConfig(lr=0.07, weight_decay=0.01, momentum=0.6)))


def test_scoping_stops_at_gamma_min_and_leaves_infinite_gamma_alone() -> None:
    hyper = QUADRATIC | {"gamma": [math.inf, 2.0, 4.0], "gamma_scoping": [0.5, 1.0, 0.0], "gamma_min": [0.0, 0.75, 4.0]}
    rule = LocalEntropy(inner_steps=1, noisy=False)
    rows = coefficients(rule, hyper, torch.zeros(3, 1, dtype=torch.float64), 4)
    pulls = [c.pull[:, 0].tolist() for c in rows]
    assert pulls == [[0, 1 / 2, 1 / 4], [0, 1, 1 / 4], [0, 1 / 0.75, 1 / 4], [0, 1 / 0.75, 1 / 4]]


# In the trainer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("integrator", "momentum", "nesterov"), [("leimkuhler_matthews", False, True), ("em", True, False)]
)
def test_networks_are_trained_as_by_the_naive_loop(integrator: str, momentum: bool, nesterov: bool) -> None:
    """Batches, noise and the number before the first noise reach the rule in the right order, in each run."""
    common: dict[str, Any] = {
        "inner_steps": 4,
        "burn_in": 1,
        "inner_start": "warm",
        "averaging": "uniform",
        "integrator": integrator,
        "nu_annealing": "linear",
        "nesterov": nesterov,
    }
    changed = {} if momentum else {"momentum": 0.0}
    floats: list[dict[str, Any]] = [
        {name: values[i] for name, values in HYPER.items()}
        | {"nu": 1e-4 * (1 + i), "gamma": 0.5 + i, "gamma_min": 0.3}
        | changed
        for i in range(2)
    ]
    trainer = TrainerConfig(budget=52, batch_size=100, precision="float64", compile="off")  # epochs of 11 evaluations
    configs = [
        TrainConfig(
            model=MlpConfig(width=6, depth=1, activation="tanh"),
            optimizer=LocalEntropyConfig(**common, **hyper),
            trainer=trainer,
            seed=seed,
        )
        for hyper, seed in zip(floats, (5, 2**40), strict=True)
    ]
    prepared = prepare(configs)
    fleet = prepared.fleet()
    inputs, targets = prepared.problem.inputs, prepared.problem.targets
    network = prepared.problem.model.module().double()
    xi = torch.empty(51, 2, fleet.d, dtype=torch.float64)
    streams.normal_(xi, fleet.seeds, streams.Purpose.NOISE, 0)

    def gradient_of_run(run: int) -> reference.Gradient:
        def gradient(k: int, y: ndarray) -> ndarray:
            chosen = fleet.batches.indices(k, 1)[0, run, : fleet.batches.size(k)]
            nn.utils.vector_to_parameters(torch.from_numpy(y), network.parameters())
            loss = cross_entropy(network(inputs[chosen]), targets[chosen])
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).numpy()

        return gradient

    starts = fleet.x.clone()
    fleet.advance(50)
    assert prepared.budget == 50
    for i in range(2):
        hyper = dict(floats[i])
        rate = hyper.pop("lr")
        start, noise = starts[i].numpy(), xi[:, i].numpy()
        path = reference.local_entropy(
            start, gradient_of_run(i), noise, lambda _, rate=rate: rate, cycles=10, **common, **hyper
        )
        x, y = path[-1]
        np.testing.assert_allclose(fleet.x[i].numpy(), x, rtol=0, atol=1e-11)  # 50 steps of sums in another order
        np.testing.assert_allclose(fleet.state.y[i].numpy(), y, rtol=0, atol=1e-11)
