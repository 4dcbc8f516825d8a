"""Homogenisation of the fast-slow SDE (5.3)-(5.16): as epsilon -> 0 the slow point descends on the local entropy.

dx = -(x - y) / gamma ds,  dy = -(1 / epsilon) [grad F(y) + (y - x) / gamma] ds + sqrt(2 T / epsilon) dW  (5.14) with
the consistent T = 2 nu. The paper prints T = nu, which averages to the local entropy of viscosity nu / 2. The limit is
dX / ds = -grad F_gamma(X) (5.12), printed with the other sign. s is the time of the algorithm, not of the PDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy import ndarray
from scipy.integrate import solve_ivp
from scipy.linalg import expm, solve_continuous_lyapunov

from burgersgd.optimizers.langevin import Langevin
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.optimizers.paper import PaperSDE
from burgersgd.theory.checks import check_finite, check_not_negative, check_positive
from burgersgd.theory.local_entropy import Integrator, Loss, local_entropy
from burgersgd.theory.paths import averaged, end_of_walk, normals, standard_error, walk

Temperature = Literal["consistent", "printed"]


# ---------------------------------------------------------------------------------- the passive scalar of (5.1), (5.2)


def passive_scalar_paths(nu: float, velocity: float, epsilon: float, paths: int) -> ndarray:
    """Return X(1) ``[paths]`` of particles in the shear (V sin(Y / epsilon) / epsilon, 0) with diffusion nu.

    Implements Eq. (5.1) at p = 2, which is (5.2). Implements Eq. (5.2): w_t = (1 / epsilon) h w_x + nu Lap w, whose
    limit is a diffusion of viscosity nu + V^2 / (2 nu), linear and unrelated to (5.11). X starts at 0, and Y / epsilon
    is uniformly distributed. Raises ValueError unless all numbers are finite and > 0.
    """
    check_positive(nu=nu, velocity=velocity, epsilon=epsilon, paths=paths)
    phase = 2 * math.pi * (np.arange(paths) + 0.5) / paths
    begin = np.stack([np.zeros(paths), epsilon * phase], axis=1)

    def descent(at: ndarray) -> ndarray:  # minus the velocity
        return np.stack([-velocity / epsilon * np.sin(at[:, 1] / epsilon), np.zeros(paths)], axis=1)

    return end_of_walk(Langevin(), begin, descent, 1000, lr=1e-3, temperature=nu).x[:, 0].numpy()


# -------------------------------------------------------------------------------------------------------- the limit


def averaged_velocity(loss: Loss, x: float, gamma: float, nu: float) -> float:
    """Return dX / ds = -grad F_gamma(X) at X = x. Implements Eq. (5.12), which is printed without the - sign."""
    return -float(local_entropy(loss.value, x, gamma, nu).gradient)


def averaged_path(
    loss: Loss, start: float, gamma: float | Callable[[float], float], nu: float, times: Sequence[float]
) -> ndarray:
    """Return X(s) of (5.12) from X(0) = start at times s ``[n]`` in increasing order, by DOP853 on the quadrature.

    gamma may be a function of s (scoping). Raises ValueError unless gamma and nu are finite and > 0, start is finite
    and the times increase from 0 or later.
    """
    check_finite(start=start, times=times)
    if times[0] < 0 or np.any(np.diff(times) <= 0):
        raise ValueError(f"times={list(times)}: must increase, from 0 or later")
    at = gamma if callable(gamma) else lambda s: gamma

    def velocity(s: float, X: ndarray) -> list[float]:
        return [averaged_velocity(loss, float(X[0]), at(s), nu)]

    return solve_ivp(velocity, (0.0, times[-1]), [start], method="DOP853", t_eval=times, rtol=1e-12, atol=1e-14).y[0]


def transport_residual(loss: Loss, x: float, s: float, gamma: float, nu: float, *, sign: float = -1.0) -> float:
    """Return w_s - sign * grad F_gamma(x) w_x for w(x, s) = X(s; x), by central differences: zero for sign = -1.

    Implements Eq. (5.11), printed with sign = 1. Raises ValueError as averaged_path does.
    """
    step = 1e-3
    ahead, behind = (averaged_path(loss, x + side * step, gamma, nu, [s])[0] for side in (1, -1))
    before, after = averaged_path(loss, x, gamma, nu, [s - step, s + step])
    gradient = -averaged_velocity(loss, x, gamma, nu)
    return float((after - before) - sign * gradient * (ahead - behind)) / (2 * step)


# ----------------------------------------------------------------------------------------- the system at finite epsilon


def fast_slow_paths(
    loss: Loss,
    start: float,
    gamma: float,
    nu: float,
    epsilon: float,
    *,
    duration: float = 1.0,
    lr: float = 0.05,
    paths: int = 8000,
    temperature: Temperature = "consistent",
    integrator: Integrator = "leimkuhler_matthews",
    seed: int = 0,
) -> tuple[ndarray, ndarray]:
    """Return x and y ``[paths]`` at s = duration from x = y = start, in antithetic pairs (i, i + paths / 2).

    The steps are those of the rule optimizers.paper.PaperSDE, at most epsilon * lr long in s. Implements Eq. (5.5).
    Implements Eq. (5.14), with T = 2 nu (consistent) or nu (printed). Raises ValueError unless gamma, epsilon, lr and
    duration are finite and > 0, nu is finite and >= 0, start is finite, and paths is even and > 0.
    """
    check_positive(gamma=gamma, epsilon=epsilon, lr=lr, duration=duration)
    check_not_negative(nu=nu)
    check_finite(start=start)
    if paths < 2 or paths % 2:
        raise ValueError(f"paths={paths}: must be even and > 0, for antithetic pairs")
    steps = math.ceil(duration / (epsilon * lr) * (1 - 1e-12))
    noise = normals(seed, paths, antithetic=True)
    noise = averaged(noise) if integrator == "leimkuhler_matthews" else noise
    lr = duration / (epsilon * steps)
    begin, hyper = np.full((paths, 1), start), {"lr": lr, "nu": nu, "gamma": gamma, "epsilon": epsilon}
    state = end_of_walk(PaperSDE(temperature), begin, loss.gradient, steps, noise=noise, **hyper)
    return state.x[:, 0].numpy(), state.y[:, 0].numpy()


class ConvergenceErrors(NamedTuple):
    """Errors of the slow point x(1) against its limit X(1); each list has one number per epsilon."""

    weak: list[float]  # |E x(1) - X(1)|, of order 1
    weak_error: list[float]  # standard errors of weak
    strong: list[float]  # sqrt(E (x(1) - X(1))^2), of order 1/2


def convergence_errors(
    loss: Loss,
    start: float,
    gamma: float,
    nu: float,
    epsilons: Sequence[float],
    integrator: Integrator = "leimkuhler_matthews",
) -> ConvergenceErrors:
    """Return weak and strong errors of the fast-slow system against X(1). Raises ValueError as fast_slow_paths does."""
    limit = float(averaged_path(loss, start, gamma, nu, [1.0])[0])
    paths = [
        fast_slow_paths(loss, start, gamma, nu, epsilon, integrator=integrator, seed=i)[0]
        for i, epsilon in enumerate(epsilons)
    ]
    return ConvergenceErrors(
        weak=[abs(float(x.mean()) - limit) for x in paths],
        weak_error=[float(standard_error(x.reshape(2, -1).mean(0))) for x in paths],  # of antithetic pairs
        strong=[math.sqrt(np.mean((x - limit) ** 2)) for x in paths],
    )


def quadratic_moments(
    curvature: float,
    gamma: float,
    temperature: float,
    epsilon: float,
    s: float,
    start: Sequence[float] = (1.0, 1.0),
) -> tuple[ndarray, ndarray]:
    """Return mean ``[2]`` and covariance ``[2, 2]`` of (5.14) on F = a y^2 / 2 at time s from (x, y) = start.

    Implements Eq. (5.6): as functions of start, the moments solve w_s = h . grad_x w + (1 / epsilon) L_0 w.
    Implements Eq. (5.8): the Gaussian law solves the adjoint equation. The slow parts, h . grad_x w and -div_x(h
    rho), are missing in the paper. Raises ValueError unless curvature, gamma, epsilon and s are finite and > 0, the
    temperature is finite and >= 0, and start is finite.
    """
    check_positive(curvature=curvature, gamma=gamma, epsilon=epsilon, s=s)
    check_not_negative(temperature=temperature)
    check_finite(start=start)
    drift = np.array([[-1 / gamma, 1 / gamma], [1 / (gamma * epsilon), -(curvature + 1 / gamma) / epsilon]])
    noise = np.diag([0.0, 2 * temperature / epsilon])
    flow = expm(drift * s)
    stationary = solve_continuous_lyapunov(drift, -noise)
    return flow @ np.asarray(start), stationary - flow @ stationary @ flow.T


# ---------------------------------------------------------------------------------------------- the frozen fast point


def ergodic_average(loss: Loss, x: float, gamma: float, nu: float, durations: Sequence[float]) -> ndarray:
    """Return (1 / S) int (x - y) / gamma ds along 2,000 paths of y at frozen x, for each S, ``[durations, paths]``.

    Times are in units of the fast scale; the paths come to equilibrium for 4 before. Implements Eq. (5.13), with the
    sign and gamma corrected. The average is the running mean of the rule optimizers.local_entropy.LocalEntropy. Raises
    ValueError unless gamma, nu and the durations are finite and > 0, the durations are at least one step, and x is
    finite.
    """
    lr, wait = 0.02, 200
    check_positive(gamma=gamma, nu=nu, shortest_duration=min(durations))
    check_finite(x=x)
    counts = [round(duration / lr) for duration in durations]
    if min(counts) < 1:
        raise ValueError(f"durations={list(durations)}: must be at least lr={lr:g}")
    rule = LocalEntropy(inner_steps=max(counts), burn_in=wait, integrator="leimkuhler_matthews")
    states = walk(rule, np.full((2000, 1), x), loss.gradient, wait + max(counts), lr=lr, nu=nu, gamma=gamma)
    averages = {n: (x - s.mean[:, 0].numpy()) / gamma for n, s in enumerate(states, start=1 - wait) if n in counts}
    return np.stack([averages[n] for n in counts])


def invariant_sample(loss: Loss, x: float, gamma: float, nu: float, temperature: Temperature, paths: int) -> ndarray:
    """Return y ``[paths]`` of (5.14) at frozen x in equilibrium: its law is exp(-G / (2 nu)) / Z, that is (4.21).

    Implements Eq. (5.16). With temperature = printed the law is that of nu / 2, so (5.16) does not agree with (4.21).
    The 500 steps are those of the rule optimizers.paper.PaperSDE at epsilon = 0. Raises ValueError unless gamma and nu
    are finite and > 0, and x is finite.
    """
    check_positive(gamma=gamma, nu=nu)
    check_finite(x=x)
    hyper = {"lr": 0.02, "nu": nu, "gamma": gamma, "epsilon": 0.0}
    begin, noise = np.full((paths, 1), x), averaged(normals(0, paths))
    return end_of_walk(PaperSDE(temperature), begin, loss.gradient, 500, noise=noise, **hyper).y[:, 0].numpy()


def generator(
    loss: Loss, x: float, gamma: float, temperature: float, y: ndarray, first: ndarray, second: ndarray
) -> ndarray:
    """Return L_0 f = -grad_y G f' + T f'' at points y, given f' and f'' there; all of one shape. T = beta^2 / 2.

    Implements Eq. (5.7). Implements Eq. (5.10): L_0 1 = 0, and the mean of L_0 f under exp(-G / T) is 0.
    """
    return -_slope(loss, x, gamma, y) * first + temperature * second


def flux(loss: Loss, x: float, gamma: float, temperature: float, y: ndarray, density: ndarray) -> ndarray:
    """Return grad_y G rho + T rho' on a grid y ``[n]``, rho' by differences of second order; T = beta^2 / 2.

    Implements Eq. (5.9): its derivative is L_0* rho. Implements Eq. (5.15), with T = beta^2 / 2: its derivative over
    epsilon is rho_t.
    """
    return _slope(loss, x, gamma, y) * density + temperature * np.gradient(density, y, edge_order=2)


def _slope(loss: Loss, x: float, gamma: float, y: ndarray) -> ndarray:
    """Return grad_y G(x, y; gamma)."""
    return loss.gradient(y) + (y - x) / gamma
