"""Slow and simple oracles: the algorithms of the paper for one run, one gradient after the other, in numpy.

Nothing here is shared with burgersgd. x is the slow point, y the fast point, both ``[d]``; ``gradient(k, y)`` is the
stochastic gradient of evaluation k = 0, 1, ... at y; ``xi[k + 1]`` are its standard normal numbers, xi[0] those before
the first. ``lr(fraction)`` is the learning rate as a function of the share of the budget that is spent. Each oracle
returns x and y after every gradient evaluation, ``[evaluations, 2, d]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

Gradient = Callable[[int, ndarray], ndarray]
Rate = Callable[[float], float]


def local_entropy(
    x: ndarray,
    gradient: Gradient,
    xi: ndarray,
    lr: Rate,
    *,
    cycles: int,
    inner_steps: int,
    burn_in: int,
    inner_start: str,
    averaging: str,
    integrator: str,
    nu_annealing: str,
    nesterov: bool,
    nu: float,
    gamma: float,
    outer_step: float,
    ema_weight: float,
    gamma_scoping: float,
    gamma_min: float,
    momentum: float,
    outer_momentum: float,
    weight_decay: float,
) -> ndarray:
    """The consistent rule: SGLD in y at temperature 2 nu, and x moves to the mean of y after every cycle.

    With momentum the noise is that of SGHMC, a part of the step u of y; where lr changes, u is scaled with it.
    """
    L, b = inner_steps, burn_in
    budget = cycles * (b + L)
    annealed = {
        "constant": lambda fraction: nu,
        "linear": lambda fraction: nu * (1 - fraction),
        "cosine": lambda fraction: nu * 0.5 * (1 + math.cos(math.pi * fraction)),
    }[nu_annealing]
    y = x
    u, V = np.zeros_like(x), np.zeros_like(x)  # the step of y by its momentum, and the heavy-ball velocity of x
    eta_before = 1.0
    trajectory = []
    for cycle in range(cycles):
        gamma_now = max(gamma * (1 + gamma_scoping) ** -cycle, gamma_min)
        if inner_start == "reset":
            y, u = x, np.zeros_like(x)
        ys = []
        for k in range(cycle * (b + L), (cycle + 1) * (b + L)):
            eta, temperature = lr(k / budget), 2 * annealed(k / budget)
            g = gradient(k, y) + weight_decay * y + (y - x) / gamma_now
            z = xi[k + 1] if integrator == "em" else (xi[k] + xi[k + 1]) / 2
            push = eta * g - math.sqrt(2 * (1 - momentum) * temperature * eta) * z
            u, eta_before = momentum * (eta / eta_before) * u + push, eta
            y = y - (push + momentum * u if nesterov else u)
            ys.append(y)
            trajectory.append((x, y))
        averaged = ys[b:]
        if averaging == "uniform":
            mean = sum(averaged) / L
        elif averaging == "ema":
            mean = x
            for point in averaged:
                mean = (1 - ema_weight) * mean + ema_weight * point
        else:
            mean = averaged[-1]
        V = outer_momentum * V + (x - mean)
        x = x - outer_step * ((x - mean) + outer_momentum * V if nesterov else V)
        trajectory[-1] = (x, x if inner_start == "reset" else y)
    return np.array(trajectory)


def paper_sde(
    x: ndarray,
    gradient: Gradient,
    xi: ndarray,
    lr: Rate,
    *,
    steps: int,
    temperature: str,
    nu: float,
    gamma: float,
    epsilon: float,
) -> ndarray:
    """Euler-Maruyama of (5.14): dx = -(x - y) / gamma ds, dy = -grad_y G / epsilon ds + sqrt(2 T / epsilon) dW."""
    T = {"printed": nu, "consistent": 2 * nu}[temperature]
    y = x
    trajectory = []
    for k in range(steps):
        ds = epsilon * lr(k / steps)
        dW = math.sqrt(ds) * xi[k + 1]
        x_drift = -(x - y) / gamma
        y_drift = -(gradient(k, y) + (y - x) / gamma) / epsilon
        x, y = x + ds * x_drift, y + ds * y_drift + math.sqrt(2 * T / epsilon) * dW
        trajectory.append((x, y))
    return np.array(trajectory)


def paper_literal(
    x: ndarray,
    gradient: Gradient,
    xi: ndarray,
    lr: Rate,
    *,
    steps: int,
    period: int | None,
    noise: str,
    nu: float,
    gamma: float,
) -> ndarray:
    """(5.18)-(5.19) to the letter for k = 0 ... N, that is N + 1 gradient evaluations; the printed period is N."""
    N = steps - 1
    y = x
    trajectory = []
    for k in range(N + 1):
        dt = lr(k / steps)
        dW = xi[k + 1] * (math.sqrt(dt) if noise == "double" else 1.0)
        y_new = y - dt * (gradient(k, y) + (y - x) / gamma) + math.sqrt(2 * dt * nu) * dW
        x_new = x - (dt / gamma) * (x - y) if k % (N if period is None else period) == 0 else x
        x, y = x_new, y_new
        trajectory.append((x, y))
    return np.array(trajectory)


# Affine recursions of the consistent rule on F = a x^2 / 2 --------------------------------------------------------


def cycle_matrix(a: float, gamma: float, eta: float, L: int, b: int, r: float, averaging: str) -> ndarray:
    """A of E (x, y)_{n+1} = A (x, y)_n over one warm cycle of b + L gradients, r = h / gamma."""
    p, rho = 1 / (1 + a * gamma), 1 - eta * (a + 1 / gamma)
    theta = rho ** (b + 1) * (1 - rho**L) / (L * (1 - rho)) if averaging == "uniform" else rho ** (b + L)
    end = rho ** (b + L)
    return np.array([[1 - r + r * (1 - theta) * p, r * theta], [(1 - end) * p, end]])


def cycle_noise(a: float, gamma: float, eta: float, L: int, b: int, r: float, averaging: str) -> ndarray:
    """B of (x, y)_{n+1} = A (x, y)_n + s B xi, [2, b + L]: the weights of one cycle's normals; s is a step's noise."""
    rho = 1 - eta * (a + 1 / gamma)
    columns = []
    for j in range(1, b + L + 1):
        to_y = rho ** (b + L - j)
        averaged = rho ** max(0, b + 1 - j) * (1 - rho ** (L - max(0, j - b - 1))) / (L * (1 - rho))
        columns.append((r * (averaged if averaging == "uniform" else to_y), to_y))
    return np.array(columns).T


def stationary_covariance(A: ndarray, B: ndarray) -> ndarray:
    """S = A S A' + B B', by Kronecker products."""
    n = len(A)
    return np.linalg.solve(np.eye(n * n) - np.kron(A, A), (B @ B.T).reshape(-1)).reshape(n, n)


# A nonlinear loss, F = y^2 / 2 + 0.45 cos 2y -----------------------------------------------------------------------


def ripple(y: Any) -> Any:
    """F(y)."""
    return y**2 / 2 + 0.45 * np.cos(2 * y)


def ripple_slope(y: Any) -> Any:
    """F'(y)."""
    return y - 0.9 * np.sin(2 * y)


# Quadrature -------------------------------------------------------------------------------------------------------


def fast_law(F: Callable[[ndarray], ndarray], x: float, gamma: float, nu: float) -> tuple[float, float]:
    """Mean and variance of exp(-(F(y) + (x - y)^2 / 2 gamma) / (2 nu)), by the trapezoidal rule; nu > 0.001."""
    y = np.linspace(x - 8, x + 8, 80_001)
    G = F(y) + (x - y) ** 2 / (2 * gamma)
    weight = np.exp(-(G - G.min()) / (2 * nu))
    mean = float((weight * y).sum() / weight.sum())
    return mean, float((weight * (y - mean) ** 2).sum() / weight.sum())


def euler_mean(slope: Callable[[ndarray], ndarray], x: float, gamma: float, nu: float, eta: float) -> float:
    """Stationary mean of y' = y - eta (F'(y) + (y - x) / gamma) + sqrt(4 nu eta) xi, from its transition matrix."""
    y, spacing = np.linspace(x - 2, x + 2, 601, retstep=True)
    ahead = y - eta * (slope(y) + (y - x) / gamma)
    variance = 4 * nu * eta
    density = np.exp(-((y[None, :] - ahead[:, None]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    weight = np.full(len(y), 1 / len(y))
    for _ in range(1000):
        weight = weight @ density * spacing
        weight /= weight.sum()
    return float(weight @ y)


# Schedules --------------------------------------------------------------------------------------------------------


def warm_cosine(rate: float, warmup: float, final: float, steps: int) -> Rate:
    """rate times: a straight line from 0 over the first `warmup` of the budget, then half a cosine from 1 to final."""

    def lr(fraction: float) -> float:
        if fraction + 1 / steps < warmup:
            return rate * (fraction + 1 / steps) / warmup
        done = max(0.0, (fraction - warmup) / (1 - warmup))
        return rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

    return lr


# Samples ----------------------------------------------------------------------------------------------------------


def start(runs: int, d: int) -> ndarray:
    """Some starting points, none of them special, [runs, d]."""
    return 1.5 * np.random.default_rng(7).normal(size=(runs, d))


def z_mean(sample: ndarray | Sequence[float], mean: float, variance: float) -> float:
    """z-score of the mean of independent normal numbers with known variance."""
    values = np.asarray(sample)
    return float((values.mean() - mean) / math.sqrt(variance / len(values)))


def z_variance(sample: ndarray | Sequence[float], variance: float) -> float:
    """z-score of the variance of independent normal numbers."""
    values = np.asarray(sample)
    return float((values.var(ddof=1) / variance - 1) / math.sqrt(2 / (len(values) - 1)))
