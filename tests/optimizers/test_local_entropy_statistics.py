"""The consistent rule samples what it should: z-scores against exact laws, and mutants that the same sample rejects.

M independent float64 chains fixed beforehand, one look, |z| < 6 (p = 2e-9). The laws are those of the discrete chain,
not of the SDE it approximates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor

from burgersgd.optimizers.local_entropy import LocalEntropy
from tests import reference
from tests.optimizers.driver import M, assert_fails, drive, last, normals

# Two runs on F = a (y - c)^2 / 2 with mini-batch gradients of standard deviation sigma.
A, GAMMA, NU, LR, SIGMA = [1.5, 0.4], [0.5, 2.0], [0.2, 0.05], [0.1, 0.3], [1.2, 0.5]
C, START = 0.7, 1.9
ALPHA = 0.3


def hyper(**changed: list[float]) -> dict[str, list[float]]:
    unused = {name: [0.0, 0.0] for name in ("gamma_scoping", "gamma_min", "momentum", "outer_momentum", "weight_decay")}
    return unused | {
        "lr": LR,
        "nu": NU,
        "gamma": GAMMA,
        "outer_step": [0.2, 0.6],
        "ema_weight": [ALPHA] * 2,
        **changed,
    }


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def inside_one_cycle(rule: LocalEntropy, minibatch: bool) -> Any:
    """Return the state of two runs of M chains one gradient before the end of a cycle from x = y = START."""
    batch_noise = normals(2, 2, M)

    def gradient(k: int, y: Tensor) -> Tensor:
        g = column(A) * (y - C)
        return g + column(SIGMA) * batch_noise(k) if minibatch else g

    longer = LocalEntropy(**{**vars(rule), "inner_steps": rule.inner_steps + 1})
    x = torch.full((2, M), START, dtype=torch.float64)
    states = drive(longer, hyper(), x, gradient, longer.gradients_per_cycle, normals(1, 2, M))
    return [state for _, state in zip(range(rule.gradients_per_cycle), states, strict=False)][-1]


def chain(i: int, minibatch: bool, T_factor: float = 1.0) -> tuple[float, float, float, float]:
    """Return m, rho, the variance s2 that one step adds, and the stationary variance V of y in run i."""
    a, gamma, eta, sigma, T = A[i], GAMMA[i], LR[i], SIGMA[i] * minibatch, 2 * NU[i] * T_factor
    kappa = a + 1 / gamma
    s2 = 2 * T * eta + eta**2 * sigma**2
    return (START + a * gamma * C) / (1 + a * gamma), 1 - eta * kappa, s2, s2 / (eta * kappa * (2 - eta * kappa))


def temperature_mutants(i: int) -> dict[str, float]:
    """Return what multiplies T = 2 nu when somebody slips."""
    return {"T = nu": 0.5, "T = 4 nu": 2.0, "extra sqrt(dt)": LR[i]}


@pytest.mark.parametrize("minibatch", [False, True])
def test_fast_point_has_the_stationary_law_of_euler_maruyama(minibatch: bool) -> None:
    y = inside_one_cycle(LocalEntropy(inner_steps=45), minibatch).y
    for i in range(2):
        sample = y[i].numpy()
        m, rho, _, V = chain(i, minibatch)
        assert rho**90 < 1e-8
        assert abs(reference.z_mean(sample, m, V)) < 6
        assert abs(reference.z_variance(sample, V)) < 6
        mutants = {name: chain(i, minibatch, f)[3] for name, f in temperature_mutants(i).items()}
        mutants["variance of the SDE"] = 2 * NU[i] / (A[i] + 1 / GAMMA[i])
        if minibatch:
            mutants["without mini-batch noise"] = chain(i, False)[3]
        assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


def test_leimkuhler_matthews_has_the_variance_of_the_sde() -> None:
    y = inside_one_cycle(LocalEntropy(inner_steps=45, integrator="leimkuhler_matthews"), False).y
    for i in range(2):
        sample = y[i].numpy()
        V = 2 * NU[i] / (A[i] + 1 / GAMMA[i])
        assert abs(reference.z_mean(sample, chain(i, False)[0], V)) < 6
        assert abs(reference.z_variance(sample, V)) < 6
        mutants = {name: V * f for name, f in temperature_mutants(i).items()}
        mutants["variance of Euler-Maruyama"] = chain(i, False)[3]
        mutants["noise (xi + xi') / sqrt(2)"] = 2 * V
        assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


@pytest.mark.parametrize("averaging", ["uniform", "ema"])
def test_mean_over_a_stationary_path(averaging: Any) -> None:
    L = 40 if averaging == "uniform" else 70  # 0.7^70 = 1e-11: the exponential mean has forgotten x
    mean = inside_one_cycle(LocalEntropy(inner_steps=L, burn_in=45, averaging=averaging), True).mean

    def variance(i: int, T_factor: float = 1.0) -> float:
        _, rho, _, V = chain(i, True, T_factor)
        if averaging == "ema":
            q = 1 - ALPHA
            return V * ALPHA / (2 - ALPHA) * (1 + q * rho) / (1 - q * rho)
        return V / L * ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**L) / (L * (1 - rho) ** 2))

    for i in range(2):
        sample = mean[i].numpy()
        assert abs(reference.z_mean(sample, chain(i, True)[0], variance(i))) < 6
        assert abs(reference.z_variance(sample, variance(i))) < 6
        mutants = {name: variance(i, f) for name, f in temperature_mutants(i).items()}
        mutants["no average"] = chain(i, True)[3]
        assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


def test_mean_over_a_path_from_a_fixed_start() -> None:
    L = 7
    mean = inside_one_cycle(LocalEntropy(inner_steps=L), True).mean

    def law(i: int, T_factor: float = 1.0) -> tuple[float, float]:
        m, rho, s2, _ = chain(i, True, T_factor)
        theta = rho * (1 - rho**L) / (L * (1 - rho))
        weights = L - 2 * rho * (1 - rho**L) / (1 - rho) + rho**2 * (1 - rho ** (2 * L)) / (1 - rho**2)
        return m + theta * (START - m), s2 / (L * (1 - rho)) ** 2 * weights

    for i in range(2):
        sample = mean[i].numpy()
        expected, variance = law(i)
        assert abs(reference.z_mean(sample, expected, variance)) < 6
        assert abs(reference.z_variance(sample, variance)) < 6
        mutants = {name: reference.z_variance(sample, law(i, f)[1]) for name, f in temperature_mutants(i).items()}
        mutants["stationary mean"] = reference.z_mean(sample, chain(i, True)[0], variance)
        assert_fails(mutants)


@pytest.mark.parametrize(("averaging", "known"), [("uniform", 0.01530), ("last", 0.03456)])
@pytest.mark.parametrize("b", [0, 3])
def test_joint_stationary_law_of_warm_cycles(averaging: Any, known: float, b: int) -> None:
    L = 10

    def covariance(i: int, T: float) -> ndarray:
        fixed = (A[i], GAMMA[i], LR[i], L, b, hyper()["outer_step"][i], averaging)
        B = math.sqrt(2 * T * LR[i]) * reference.cycle_noise(*fixed)
        return reference.stationary_covariance(reference.cycle_matrix(*fixed), B)

    if b == 0:
        assert round(float(covariance(0, 0.4)[0, 0]), 5) == known  # MATH 4: the reference itself
    cycles = 110  # the spectral radius is 0.92 at most: 0.92^220 = 1e-8
    rule = LocalEntropy(inner_steps=L, burn_in=b, averaging=averaging)
    x = torch.full((2, M), C, dtype=torch.float64)
    state = last(drive(rule, hyper(), x, lambda k, y: column(A) * (y - C), cycles * (b + L), normals(3, 2, M)))
    for i in range(2):
        S = covariance(i, 2 * NU[i])
        for weights in ([1, 0], [0, 1], [1, 1], [1, -1]):  # the variance of x + y knows of the covariance
            w = np.array(weights)
            sample = weights[0] * state.x[i].numpy() + weights[1] * state.y[i].numpy()
            assert abs(reference.z_mean(sample, float(w.sum() * C), float(w @ S @ w))) < 6
            assert abs(reference.z_variance(sample, float(w @ S @ w))) < 6
            mutants = {name: float(w @ S @ w) * f for name, f in temperature_mutants(i).items()}
            assert_fails({name: reference.z_variance(sample, wrong) for name, wrong in mutants.items()})


def test_slow_point_moves_along_the_gradient_of_the_local_entropy() -> None:
    """The double well (y^2 - 1)^2 at nu = 0.1, gamma = 0.3, x = 0.4, integrators with their own exact bias."""
    nu, gamma, eta, x = 0.1, 0.3, 0.02, 0.4

    def well_slope(y: Any) -> Any:
        return 4 * y * (y**2 - 1)

    exact, variance = reference.fast_law(lambda y: (y**2 - 1) ** 2, x, gamma, nu)
    biased = reference.euler_mean(well_slope, x, gamma, nu, eta)
    assert abs(exact - 0.71910416918) < 1e-11  # MATH 4: the references themselves
    assert abs(variance - 0.040675948) < 1e-9
    assert abs(biased - exact + 0.003348) < 5e-7
    slope = (x - exact) / gamma
    assert abs(slope + 1.06368056393) < 1e-10

    r, chains, L, b = 0.35, 10_000, 2500, 200
    same = {name: [values[0]] for name, values in hyper().items()}
    same |= {"lr": [eta], "nu": [nu], "gamma": [gamma], "outer_step": [r]}
    other_means = {
        "T = nu": reference.fast_law(lambda y: (y**2 - 1) ** 2, x, gamma, nu / 2)[0],
        "T = 4 nu": reference.fast_law(lambda y: (y**2 - 1) ** 2, x, gamma, 2 * nu)[0],
        "step h, not h / gamma": x + gamma * (exact - x),
    }
    scores = {}
    # Leimkuhler and Matthews' rule is of second order: its bias is below the standard error here
    em, lm = (LocalEntropy(inner_steps=L, burn_in=b, integrator=name) for name in ("em", "leimkuhler_matthews"))
    for rule, mean, bias_of_other in ((em, biased, exact), (lm, exact, biased)):
        begin = torch.full((1, chains), x, dtype=torch.float64)
        state = last(drive(rule, same, begin, lambda k, y: well_slope(y), b + L, normals(4, 1, chains)))
        moved = (state.x[0].numpy() - x) / r  # = mean of y - x = -gamma grad F_gamma(x)
        error = moved.std(ddof=1) / math.sqrt(chains)
        assert abs(moved.mean() - (mean - x)) < 6 * error
        for name, wrong in (other_means | {"bias of the other": bias_of_other}).items():
            scores[f"{rule.integrator}, {name}"] = (moved.mean() - (wrong - x)) / error
    assert_fails(scores)
