"""The paper's optimizer as printed: (5.14) at finite epsilon, (5.18)-(5.19) exactly, and their properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor

from burgersgd.optimizers.paper import PaperLiteral, PaperSDE
from tests import reference
from tests.optimizers.driver import M, assert_fails, drive, given, last, normals, of_runs, trajectory, wavy

HYPER = {
    "lr": [0.08, 0.05, 0.11],
    "nu": [0.03, 0.3, 0.007],
    "gamma": [0.4, 0.9, 2.3],
    "epsilon": [0.2, 0.7, 1.6],
}
SCHEDULE = {"warmup": [0.2, 0.3, 0.1], "final": [0.3, 0.6, 0.1]}
STEPS, D = 40, 4


def paths(rule: PaperSDE | PaperLiteral) -> tuple[ndarray, list[dict[str, Any]]]:
    """Return the paths of a fleet of three runs, and what tests/reference.py needs to walk each of them."""
    x = reference.start(3, D)
    xi = np.random.default_rng(3).normal(size=(3, STEPS + 1, D))
    gradient = of_runs([wavy(i) for i in range(3)])
    noise = given(xi) if rule.noisy else None
    states = drive(rule, HYPER, torch.from_numpy(x), gradient, STEPS, noise, "cosine", SCHEDULE)
    arguments = []
    for i in range(3):
        lr = reference.warm_cosine(HYPER["lr"][i], SCHEDULE["warmup"][i], SCHEDULE["final"][i], STEPS)
        nu, gamma = HYPER["nu"][i] * rule.noisy, HYPER["gamma"][i]
        arguments.append(
            {"x": x[i], "gradient": wavy(i), "xi": xi[i], "lr": lr, "steps": STEPS, "nu": nu, "gamma": gamma}
        )
    return trajectory(states), arguments


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("temperature", ["printed", "consistent"])
def test_every_run_of_a_fleet_is_the_naive_sde(temperature: Any, noisy: bool) -> None:
    actual, arguments = paths(PaperSDE(temperature, noisy))
    for i in range(3):
        expected = reference.paper_sde(**arguments[i], temperature=temperature, epsilon=HYPER["epsilon"][i])
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-12, err_msg=f"run {i}")


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("noise", ["double", "std"])
@pytest.mark.parametrize("period", [None, 1, 3, STEPS - 1, STEPS])
def test_every_run_of_a_fleet_equals_the_naive_loop_of_the_printed_algorithm(
    period: int | None, noise: Any, noisy: bool
) -> None:
    actual, arguments = paths(PaperLiteral(period, noise, noisy))
    for i in range(3):
        expected = reference.paper_literal(**arguments[i], period=period, noise=noise)
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-12, err_msg=f"run {i}")


def test_the_printed_period_leaves_x_where_it_is_until_the_last_step() -> None:
    actual, arguments = paths(PaperLiteral())
    for i in range(3):
        x = actual[i, :, 0]
        assert np.array_equal(x[:-1], np.broadcast_to(arguments[i]["x"], x[:-1].shape))  # x_1 ... x_N are x_0 exactly
        assert (x[-1] != x[0]).all()


# Quadratics, F = a y^2 / 2 ------------------------------------------------------------------------------------------


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def sde_covariance(a: float, gamma: float, T: float, epsilon: float, eta: float) -> ndarray:
    """Return the stationary covariance of (x, y) stepped together by Euler-Maruyama."""
    dt = epsilon * eta
    step = np.array([[1 - dt / gamma, dt / gamma], [eta / gamma, 1 - eta * (a + 1 / gamma)]])
    return reference.stationary_covariance(step, np.array([[0.0], [math.sqrt(2 * T * eta)]]))


def test_reference_covariance_tends_to_that_of_the_sde() -> None:
    a, gamma, T, epsilon = 1.5, 0.5, 0.4, 0.1
    var_x = epsilon * T / (a * (1 + a * gamma + epsilon))
    assert round(var_x, 7) == 0.0144144  # MATH 4
    expected = var_x * np.array([[1, 1], [1, 1 + a * gamma / epsilon]])
    errors = [np.abs(sde_covariance(a, gamma, T, epsilon, eta) - expected).max() for eta in (0.01, 0.001)]
    assert abs(math.log10(errors[0] / errors[1]) - 1) < 0.05  # first order in eta
    np.testing.assert_allclose(sde_covariance(a, gamma, T, epsilon, 1e-6), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", ["printed", "consistent"])
def test_sde_has_its_joint_stationary_law(temperature: Any) -> None:
    a, gamma, nu, epsilon, eta = [1.5, 0.6], [0.5, 0.8], [0.2, 0.05], [0.1, 0.7], [0.2, 0.3]
    hyper = {"lr": eta, "gamma": gamma, "nu": nu, "epsilon": epsilon}
    x = torch.zeros(2, M, dtype=torch.float64)
    # The slow mode contracts by 1 - eta epsilon a / (1 + a gamma + epsilon) = 0.984 a step: 0.984^1200 = 4e-9
    state = last(drive(PaperSDE(temperature), hyper, x, lambda k, y: column(a) * y, 600, normals(5, 2, M)))
    factor = {"printed": 1, "consistent": 2}[temperature]
    for i in range(2):
        S = sde_covariance(a[i], gamma[i], factor * nu[i], epsilon[i], eta[i])
        for weights in ([1, 0], [0, 1], [1, 1], [1, -1]):
            sample = weights[0] * state.x[i].numpy() + weights[1] * state.y[i].numpy()
            variance = float(np.array(weights) @ S @ np.array(weights))
            assert abs(reference.z_mean(sample, 0, variance)) < 6
            assert abs(reference.z_variance(sample, variance)) < 6
            mutants = {"T / 2": 0.5 * variance, "2 T": 2 * variance, "extra sqrt(dt)": epsilon[i] * eta[i] * variance}
            if weights == [0, 1]:
                limit = sde_covariance(a[i], gamma[i], factor * nu[i], epsilon[i], eta=1e-6)
                mutants["variance of the SDE"] = float(limit[1, 1])
            assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


@pytest.mark.parametrize("noise", ["double", "std"])
def test_printed_increments_make_the_temperature_depend_on_the_step(noise: Any) -> None:
    """With x frozen by the printed period, y has the law of temperature nu dt ("double") or nu ("std")."""
    a, gamma, nu, dt = [1.5, 0.6], [0.5, 0.8], [0.2, 0.05], [0.1, 0.3]
    hyper = {"lr": dt, "gamma": gamma, "nu": nu}
    x = torch.full((2, M), 0.9, dtype=torch.float64)
    state = last(drive(PaperLiteral(noise=noise), hyper, x, lambda k, y: column(a) * y, 60, normals(6, 2, M)))

    for i in range(2):
        kappa = a[i] + 1 / gamma[i]

        def variance(T: float, eta: float = dt[i], kappa: float = kappa) -> float:
            return 2 * T / (kappa * (2 - eta * kappa))

        temperature = {"double": nu[i] * dt[i], "std": nu[i]}
        T = temperature[noise]
        sample = state.y[i].numpy()
        assert abs(reference.z_mean(sample, 0.9 / (1 + a[i] * gamma[i]), variance(T))) < 6
        assert abs(reference.z_variance(sample, variance(T))) < 6
        mutants = {
            "T / 2": variance(T / 2),
            "2 T": variance(2 * T),
            "the other noise": variance(sum(temperature.values()) - T),
            "variance of the SDE": T / kappa,
        }
        assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


# A nonlinear loss ---------------------------------------------------------------------------------------------------
