"""Mistakes in the arguments of the theory are reported in one line with the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from burgersgd.theory import burgers, cole_hopf, homogenisation, langevin, local_entropy
from burgersgd.theory.gibbs import gibbs_law
from burgersgd.theory.local_entropy import RIPPLE, Loss
from burgersgd.theory.traffic import Greenshields

inf, nan = math.inf, math.nan
BOWL = Loss(lambda y: y**2, lambda y: 2 * y)


def solve(initial: Any = (1.0, -1.0) * 8, **options: Any) -> object:
    return burgers.solve(initial, **({"dx": 0.1, "times": [0.1, 0.2], "nu": 0.2} | options))


def entropy(x: Any = 0.0, gamma: float = 0.5, nu: float = 0.1, loss: Any = RIPPLE) -> object:
    return local_entropy.local_entropy(loss, x, gamma, nu)


def moments(curvature: float = 1.0, temperature: float = 0.4) -> object:
    return homogenisation.quadratic_moments(curvature, 0.5, temperature, 0.1, 1.0)


def paths(start: Any = 0.0, temperature: Any = 0.3, lr: float = 0.1) -> object:
    return langevin.langevin_paths(BOWL, np.full((2, 1), start), temperature, lr, 5)


def averaged(times: list[float], start: float = 1.0, gamma: float = 0.5) -> object:
    return homogenisation.averaged_path(RIPPLE, start, gamma, 0.1, times)


def fast_slow(nu: float = 0.1, epsilon: float = 0.1, paths: int = 4) -> object:
    return homogenisation.fast_slow_paths(RIPPLE, 1.0, 0.5, nu, epsilon, paths=paths)


POSITIVE = "must be finite and > 0"
NOT_NEGATIVE = "must be finite and >= 0"
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Greenshields(rho_max=0), f"rho_max=0: {POSITIVE}"),
    (lambda: Greenshields(1, -2), f"u_max=-2: {POSITIVE}"),
    (lambda: Greenshields().viscous_flux(1, 1, -1), f"nu=-1: {NOT_NEGATIVE}"),
    (lambda: Greenshields().riemann_solution(0, 1, 1.5, 0, 0.1), "rho_left=1.5: must be >= 0 and <= rho_max=1"),
    (lambda: Greenshields().riemann_solution(0, -1, 1, 0, 0.1), f"t=-1: {NOT_NEGATIVE}"),
    (lambda: Greenshields().ring_density(0, inf), f"length=inf: {POSITIVE}"),
    (lambda: solve(nu=-0.1), f"nu=-0.1: {NOT_NEGATIVE}"),
    (lambda: solve(nu=nan), f"nu=nan: {NOT_NEGATIVE}"),
    (lambda: solve(dx=0.0), f"dx=0: {POSITIVE}"),
    (lambda: solve([1, 2, nan, 0, inf]), r"initial: 2 values are not finite \(first at index 2\)"),
    (lambda: solve([1, 2]), r"initial: must be one-dimensional with >= 4 cells, is of shape \(2,\)"),
    (lambda: solve(dt=0.06), r"dt=0.06: must be <= 0.05 \(Courant number \|w\| dt / dx <= 0.5\)"),
    (lambda: solve(dt=-1.0), f"dt=-1: {POSITIVE}"),
    (lambda: solve(times=[0.2, 0.1]), "times: must be >= 0 and increase"),
    (lambda: solve(times=[-1.0]), "times: must be >= 0 and increase"),
    (lambda: solve(boundary="wall"), "boundary=wall: must be one of periodic, no_flux, inflow"),
    (lambda: solve(inflow=(0.0, 1.0)), "boundary=periodic: must be inflow if inflow is given"),
    (lambda: solve(inflow=(0.0, inf), boundary="inflow"), "inflow: 1 values are not finite"),
    (lambda: burgers.cell_centers(3, 0, 1), "cells=3: must be >= 4"),
    (lambda: burgers.cell_centers(8, 1, 0), "left=1, right=0: must have left < right"),
    (lambda: cole_hopf.sine(0, 1, 0), f"nu=0: {POSITIVE}"),
    (lambda: cole_hopf.sine(0, -1, 1), f"t=-1: {POSITIVE}"),
    (lambda: cole_hopf.riemann(0, 1, -0.1, 1, 0), f"nu=-0.1: {NOT_NEGATIVE}"),
    (lambda: cole_hopf.riemann(0, 1, 0.1, nan, 0), "w_left: 1 values are not finite"),
    (lambda: cole_hopf.travelling_shock(0, 1, 0.1, 0, 1), "must have w_left >= w_right"),
    (lambda: cole_hopf.phi_from_psi([1, -1], 0.1), "psi=-1: must be > 0"),
    (lambda: cole_hopf.w([0, inf], 1, 0.1, lambda y: y), r"x: 1 values are not finite \(first at index 1\)"),
    (lambda: cole_hopf.w(0, 1, 0.1, lambda y: y * nan), "loss: must be finite at every x, is not at x=0"),
    (lambda: cole_hopf.w(0, 1, 0.1, lambda y: np.where(y > 0.2, nan, y)), "loss: must be a number"),
    (lambda: cole_hopf.w(0, 1, 0.1, lambda y: -(y**2)), "loss: must rise far away"),
    (lambda: cole_hopf.antiderivative(np.sin, 1, 0), "must have left < right"),
    (lambda: entropy(gamma=0.0), f"gamma=0: {POSITIVE}"),
    (lambda: entropy(nu=-0.1), f"nu=-0.1: {POSITIVE}"),
    (lambda: entropy([0.0, nan]), "x: 1 values are not finite"),
    (lambda: entropy(np.zeros((1, 3))), "x: must have 1 or 2 dimensions for quadrature, has 3"),
    (lambda: entropy(loss=lambda y: -(y**2)), r"gamma \* \(most negative curvature"),
    (lambda: entropy(1.0, loss=lambda y: y * inf), "loss: must be finite at every x, is not at x=1"),
    (
        lambda: gibbs_law(lambda y: np.minimum((y - 9) ** 2, (y + 9) ** 2), 1e-10),
        "wells too narrow for the quadr",
    ),
    (lambda: gibbs_law(RIPPLE.value, 0.0), f"temperature=0: {POSITIVE}"),
    (lambda: local_entropy.quadratic([[0.0]], [[-3.0]], [0.0], 0.5, 0.1), "must be > -1"),
    (lambda: local_entropy.quadratic([[0.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]], [0.0, 0.0], 0.5, 0.1), "be symmetric"),
    (lambda: local_entropy.gaussian_mixture([[0.0]], [-1.0], [[0.0]], [[[1.0]]], 0.5, 0.1), "the smallest is -1"),
    (lambda: local_entropy.gaussian_mixture([[0.0]], [1.0], [[0.0]], [[[0.0]]], 0.5, 0.1), "eigenvalue is 0"),
    (lambda: local_entropy.rastrigin(0.0, 1.0, 5.0, 1.0, 0.5, 0.1), r"must lie in \[0, 10\]"),
    (lambda: local_entropy.moreau(RIPPLE.value, 0.0, -1.0), f"gamma=-1: {POSITIVE}"),
    (lambda: local_entropy.monte_carlo(RIPPLE, [0.0], 0.5, -0.1), f"nu=-0.1: {NOT_NEGATIVE}"),
    (lambda: local_entropy.monte_carlo(RIPPLE, [0.0], 0.5, 0.1, lr=inf), f"lr=inf: {POSITIVE}"),
    (lambda: paths(lr=-1.0), f"lr=-1: {POSITIVE}"),
    (lambda: paths(start=inf), "start: 2 values are not finite"),
    (lambda: paths(temperature=-0.1), "temperature: must be one number >= 0 or 5 of them"),
    (lambda: paths(temperature=[0.1, 0.2]), "temperature: must be one number >= 0 or 5 of them"),
    (lambda: langevin.minibatch_temperature(-1.0, 0.1, 3), f"trace=-1: {NOT_NEGATIVE}"),
    (lambda: langevin.minibatch_paths(lr=1.5), r"lr \* curvature = 3, must be < 2"),
    (lambda: langevin.minibatch_paths(samples=3), "samples=3: must be more than d=3"),
    (lambda: averaged([1.0], gamma=-0.5), f"gamma=-0.5: {POSITIVE}"),
    (lambda: averaged([1.0, 0.5]), "times=.*: must increase"),
    (lambda: averaged([1.0], start=inf), "start: 1 values are not finite"),
    (lambda: fast_slow(nu=-0.1), f"nu=-0.1: {NOT_NEGATIVE}"),
    (lambda: fast_slow(epsilon=0.0), f"epsilon=0: {POSITIVE}"),
    (lambda: fast_slow(paths=3), "paths=3: must be even"),
    (lambda: moments(curvature=-1.0), f"curvature=-1: {POSITIVE}"),
    (lambda: moments(temperature=-0.4), f"temperature=-0.4: {NOT_NEGATIVE}"),
    (lambda: homogenisation.ergodic_average(BOWL, 0.4, 0.5, 0.1, [0.001]), "must be at least lr=0.02"),
    (lambda: homogenisation.ergodic_average(BOWL, 0.4, 0.5, -1.0, [2.0]), f"nu=-1: {POSITIVE}"),
    (lambda: homogenisation.invariant_sample(BOWL, 0.4, 0.5, nan, "consistent", 2), f"nu=nan: {POSITIVE}"),
    (lambda: homogenisation.passive_scalar_paths(0.0, 1.0, 0.1, 2), f"nu=0: {POSITIVE}"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_mistake_is_reported_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
