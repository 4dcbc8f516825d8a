"""The checks of `burgersgd verify` for Langevin dynamics and homogenisation: (2.14)-(2.16), (5.1)-(5.17)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from burgersgd.theory import homogenisation, langevin, local_entropy
from burgersgd.theory.verify_rows import SIGMAS, Row, agrees, check, experiment, misprint, scored, within

Array = NDArray[np.float64]

LOSS, START, GAMMA, NU = local_entropy.RIPPLE, 1.2, 0.5, 0.1
"""y^2 / 2 + 0.45 cos 2y from x(0) = y(0) = 1.2, until s = 1."""
SIX = "6 standard errors"


# ------------------------------------------------------------------------------------------------------------ langevin


@check("langevin")
def transient() -> list[Row]:
    """(2.15): Euler-Maruyama on a quadratic, mean and variance on the way to equilibrium."""
    a, nu, lr, steps, paths = 2.0, 0.3, 0.05, 8, 40_000
    quadratic = local_entropy.Loss(lambda y: a * y**2 / 2, lambda y: a * y)
    x = langevin.langevin_paths(quadratic, np.full((paths, 1), 1.7), nu, lr, steps, seed=41)
    rho = 1 - lr * a
    variance = 2 * nu * lr * (1 - rho ** (2 * steps)) / (1 - rho**2)
    exact = "exact law of the discrete chain"
    return [
        scored("2.15", "E x after 8 steps", float(x.mean()), 1.7 * rho**steps, math.sqrt(variance / paths), exact),
        scored("2.15", "Var x after 8 steps", float(x.var(ddof=1)), variance, variance * math.sqrt(2 / paths), exact),
    ]


@check("langevin")
def invariant_law() -> list[Row]:
    """(2.16): the law of (2.15) is exp(-F / nu); exp(-F / 2 nu) as printed is that of another temperature."""
    nu = 0.4
    found = langevin.invariant_law_experiment(temperature=nu, paths=30_000)
    printed = langevin.gibbs_law(local_entropy.DOUBLE_WELL.value, 2 * nu)
    a = 2.0
    quadratic = local_entropy.Loss(lambda y: a * y**2 / 2, lambda y: a * y)
    sample = langevin.langevin_paths(
        quadratic, np.zeros((20_000, 1)), 0.3, 0.1, 120, integrator="leimkuhler_matthews", seed=42
    )
    variance = float(sample.var(ddof=1))
    return [
        misprint(
            "2.16",
            "double well: E x^2 under exp(-F / nu), against sampled; printed exp(-F / 2 nu)",
            found.variance.expected,
            float(printed.covariance()),
            found.variance.measured,
            SIGMAS * found.variance.error,
            SIX,
        ),
        within(
            "2.16", "p-value of Kolmogorov and Smirnov", found.ks_pvalue, 0.5, (1e-6, 1), "uniform if the law is right"
        ),
        misprint(
            "2.16",
            "quadratic: Var x = nu / a, against sampled; printed 2 nu / a",
            0.3 / a,
            0.6 / a,
            variance,
            SIGMAS * 0.15 * math.sqrt(2 / 20_000),
            SIX,
        ),
    ]


@check("langevin")
def minibatch_noise() -> list[Row]:
    """(2.14), (2.15): mini-batch noise is Langevin noise of temperature lr nu_mb / d, not nu_mb."""
    found = langevin.minibatch_experiment()
    v = found.variance
    return [
        scored(
            "2.11, 2.12",
            "Var x of mini-batch SGD on a quadratic",
            v.measured,
            v.expected,
            v.error,
            "exact law of the chain",
        ),
        misprint(
            "2.14, 2.15",
            "T / a with T = lr nu_mb / d, against that variance; printed nu = nu_mb",
            found.langevin_variance,
            found.printed_variance,
            v.measured,
            SIGMAS * v.error + 0.02 * v.expected,
            "6 standard errors + first order in lr",
        ),
    ]


@check("langevin")
def annealing() -> list[Row]:
    """Simulated annealing leaves the wrong well, a quench does not."""
    found = langevin.annealing_experiment()
    gap = found.annealed - found.quenched
    return [
        within(
            "2.16", "share in the deeper well, annealed - quenched", gap, 0.6, (0.3, 1), "metastability of the quench"
        ),
        within(
            "2.16",
            "annealed share (Gibbs law at the first T at least)",
            found.annealed,
            found.final_law,
            (found.start_law, 1),
            "between the laws of first and last temperature, or beyond",
        ),
    ]


# ------------------------------------------------------------------------------------------------------ homogenisation


@experiment
def convergence(temperature: homogenisation.Temperature) -> homogenisation.ConvergenceOrders:
    """Return the experiment of orders in epsilon, with the noise of either temperature, against its own limit."""
    return homogenisation.convergence_experiment(
        LOSS, start=START, gamma=GAMMA, nu=NU, temperature=temperature,
        limit_nu=NU if temperature == "consistent" else NU / 2,
    )  # fmt: skip


@experiment
def extrapolated(temperature: homogenisation.Temperature) -> tuple[float, float]:
    """Return the mean of x(1) for epsilon -> 0 (Richardson, from 1/32 and 1/64) and its standard error."""
    means, errors = [], []
    for epsilon in (1 / 32, 1 / 64):
        x, _ = homogenisation.fast_slow_paths(LOSS, START, GAMMA, NU, epsilon, temperature=temperature)
        pairs = x.reshape(2, -1).mean(0)
        means.append(float(x.mean()))
        errors.append(float(pairs.std(ddof=1)) / math.sqrt(len(pairs)))
    return 2 * means[1] - means[0], math.hypot(2 * errors[1], errors[0])


def slow_descent(sign: float, steps: int = 40) -> float:
    """Return X(1) of dX/ds = sign grad F_gamma(X) by the classical Runge-Kutta method, apart from averaged_path."""

    def velocity(x: float) -> float:
        return sign * float(local_entropy.local_entropy(LOSS.value, x, GAMMA, NU).gradient)

    x, h = START, 1 / steps
    for _ in range(steps):
        k1 = velocity(x)
        k2 = velocity(x + h / 2 * k1)
        k3 = velocity(x + h / 2 * k2)
        k4 = velocity(x + h * k3)
        x += h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@check("homogenisation")
def orders() -> list[Row]:
    """(5.14) -> (5.12) as epsilon -> 0: weak order 1, strong order 1/2."""
    found = convergence("consistent")
    return [
        within("5.12", "weak order in epsilon", found.weak_slope, 1, (0.9, 1.1), "next order is 1/2"),
        within("5.12", "strong order in epsilon", found.strong_slope, 0.5, (0.44, 0.52), "next orders are 1 and 0"),
        agrees("5.5", "weak error at epsilon = 1/64", found.weak[-1], 0, 2e-3, "first order: 0.0011"),
    ]


@check("homogenisation")
def descent() -> list[Row]:
    """(5.11)-(5.13): the slow point descends; the printed signs climb."""
    path = float(homogenisation.averaged_path(LOSS, START, GAMMA, NU, [1.0])[0])
    measured, error = extrapolated("consistent")
    residuals = [homogenisation.transport_residual(LOSS, START, 0.6, GAMMA, NU, sign=sign) for sign in (-1.0, 1.0)]
    average = homogenisation.ergodic_average(LOSS, START, GAMMA, NU)
    longest = average.longest
    tolerance = SIGMAS * error + 5e-4
    why = "6 standard errors + O(eps^2)"
    return [
        agrees("5.12", "X(1) (computed independently)", path, 0.9815554130751, 1e-9, "integrator to 1e-11"),
        misprint(
            "5.12",
            "X(1), against E x(1) of (5.14) as epsilon -> 0; printed sign +",
            path,
            slow_descent(1),
            measured,
            tolerance,
            why,
        ),
        misprint(
            "5.11",
            "residual of w_s = - grad F_gamma . grad w; printed +",
            residuals[0],
            residuals[1],
            0,
            1e-5,
            "central differences",
        ),
        misprint(
            "5.13",
            "time average of (x - y) / gamma, against grad F_gamma; printed y - x",
            longest.measured,
            -longest.measured,
            longest.expected,
            SIGMAS * longest.error,
            SIX,
        ),
        within(
            "5.13", "its error falls like S to the power", average.rms_slope, -0.5, (-0.6, -0.4), "ergodic; next is -1"
        ),
    ]


@check("homogenisation")
def temperature() -> list[Row]:
    """(5.14): the noise must be sqrt(4 nu / eps); as printed it averages to the local entropy of nu / 2."""
    limit, half = (float(homogenisation.averaged_path(LOSS, START, GAMMA, nu, [1.0])[0]) for nu in (NU, NU / 2))
    measured, error = extrapolated("consistent")
    printed, printed_error = extrapolated("printed")
    tolerance = SIGMAS * error + 5e-4
    law = homogenisation.invariant_measure(LOSS, 0.4, GAMMA, NU)
    wrong = homogenisation.invariant_measure(LOSS, 0.4, GAMMA, NU, temperature="printed")
    return [
        misprint(
            "5.14",
            "E x(1) as epsilon -> 0, against X(1); printed noise sqrt(2 nu / eps)",
            measured,
            printed,
            limit,
            tolerance,
            "6 standard errors + O(eps^2)",
        ),
        agrees(
            "5.14",
            "printed noise: E x(1) is X(1) of nu / 2",
            printed,
            half,
            SIGMAS * printed_error + 5e-4,
            "6 standard errors + O(eps^2)",
        ),
        misprint(
            "5.16",
            "Var y of (5.14) at frozen x, against (4.21); printed noise gives half of it",
            law.variance.measured,
            wrong.variance.measured,
            law.variance.expected,
            SIGMAS * law.variance.error,
            SIX,
        ),
        within(
            "5.16",
            "p-value of Kolmogorov and Smirnov against (4.21)",
            law.ks_pvalue,
            0.5,
            (1e-6, 1),
            "uniform if the law is right",
        ),
    ]


@check("homogenisation")
def fokker_planck() -> list[Row]:
    """(5.7)-(5.10), (5.15), (5.16): which density the flux vanishes for."""
    T = NU  # beta^2 / 2 with beta = sqrt(2 nu)
    beta = math.sqrt(2 * NU)
    fluxes = [
        homogenisation.fokker_planck_flux(LOSS, 0.4, GAMMA, sde_temperature=t, law_temperature=T) for t in (T, beta / 2)
    ]
    laws = [
        homogenisation.fokker_planck_flux(LOSS, 0.4, GAMMA, sde_temperature=T, law_temperature=t) for t in (T, 1 / beta)
    ]
    defects = [
        homogenisation.generator_defect(LOSS, 0.4, GAMMA, sde_temperature=2 * NU, law_temperature=t)
        for t in (2 * NU, NU)
    ]
    why = "differences of 2nd order"
    return [
        misprint(
            "5.15",
            "largest flux of exp(-2 G / beta^2); printed (1/2) sqrt(2 nu) Lap",
            fluxes[0],
            fluxes[1],
            0,
            1e-4,
            why,
        ),
        misprint("5.16", "largest flux with T = beta^2 / 2; printed law exp(-beta G)", laws[0], laws[1], 0, 1e-4, why),
        agrees("5.10", "largest mean of L_0 f under (4.21), T = 2 nu", defects[0], 0, 1e-9, "quadrature"),
        within(
            "5.7", "the same under exp(-G / nu): not invariant", defects[1], 1, (0.1, 1e3), "or the row above is empty"
        ),
        agrees("5.9", "largest flux under the law L_0* leaves alone", fluxes[0], 0, 1e-4, why),
    ]


@check("homogenisation")
def backward_equation() -> list[Row]:
    """(5.6), (5.8): without the slow part h . grad_x the mean of x would stay where it is."""
    a, gamma, T, epsilon, s = 0.8, 0.5, 0.2, 0.25, 1.0
    quadratic = local_entropy.Loss(lambda y: a * y**2 / 2, lambda y: a * y)
    x, _ = homogenisation.fast_slow_paths(quadratic, 1.0, gamma, T / 2, epsilon, duration=s, lr=0.02, seed=6)
    exact = homogenisation.quadratic_moments(a, gamma, T, epsilon, s)
    return [
        misprint(
            "5.6, 5.8",
            "E x(1) at epsilon = 1/4, against w with the slow part; printed: constant in time",
            float(x.mean()),
            1.0,
            float(exact.mean[0]),
            2e-3,
            "first order in the step; antithetic pairs cancel the sampling error",
        ),
        scored(
            "5.5",
            "Var x(1) at epsilon = 1/4",
            float(x.var(ddof=1)),
            float(exact.covariance[0, 0]),
            float(exact.covariance[0, 0]) * math.sqrt(2 / (len(x) / 2)),
            "pairs (i, -i) share one square",
        ),
    ]


@check("homogenisation")
def milstein() -> list[Row]:
    """(5.3), (5.4), (5.17): with additive noise Euler-Maruyama is Milstein's method, strong order 1."""
    found = langevin.strong_order_experiment()
    return [
        within(
            "5.3, 5.4, 5.17",
            "strong order of Euler-Maruyama in the step",
            found.slope,
            1,
            (0.85, 1.2),
            "next order is 1/2",
        )
    ]


@check("homogenisation")
def passive_scalar() -> list[Row]:
    """(5.1), (5.2): with a given divergence-free h (here a shear) the limit p = 2 is a diffusion, not Burgers."""
    nu, V = 0.5, 1.0
    found = homogenisation.passive_scalar_experiment(nu=nu, velocity=V, paths=10_000)
    limit = nu + V**2 / (2 * nu)
    return [
        scored("5.2", "Var x / 2t of a passive scalar in a shear flow", found.measured, found.expected, found.error),
        misprint(
            "5.1, 5.2",
            "the same, against nu + V^2 / 2 nu of its limit; printed: Burgers' equation, diffusivity nu",
            found.measured,
            nu,
            limit,
            abs(limit - found.expected) + SIGMAS * found.error,
            "finite epsilon + 6 standard errors",
        ),
    ]


@check("homogenisation")
def scoping() -> list[Row]:
    """Letting gamma fall as fast as s rises follows a characteristic: nu -> 0, x arrives at the proximal point."""
    gamma0, nu = 0.5, 2e-3
    end = gamma0 * 0.998
    arrived = float(homogenisation.averaged_path(LOSS, START, lambda s: gamma0 - s, nu, [end])[0])
    prox = float(local_entropy.moreau(LOSS.value, np.array([START]), gamma0).prox[0])
    return [
        agrees("5.12", "dX/ds = -grad F_(gamma - s)(X) arrives at prox F", arrived, prox, 5e-3, "first order in nu")
    ]
