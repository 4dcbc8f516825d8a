"""The checks of `burgersgd verify` for Langevin dynamics and homogenisation: (2.14)-(2.16), (5.1)-(5.17)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.integrate import solve_ivp, trapezoid
from scipy.stats import kstest, multivariate_normal, norm

from burgersgd.theory import gibbs, homogenisation, langevin, local_entropy
from burgersgd.theory.paths import normals, standard_error
from burgersgd.theory.quadrature import Array
from burgersgd.theory.verify_rows import (
    ROUNDING,
    SAMPLING,
    SIGMAS,
    STENCIL,
    Row,
    agrees,
    central,
    check,
    experiment,
    fitted_slope,
    largest,
    misprint,
    scored,
    within,
)

LOSS, START, GAMMA, NU = local_entropy.RIPPLE, 1.2, 0.5, 0.1
"""The loss y^2 / 2 + 0.45 cos 2y, with x(0) = y(0) = 1.2, until s = 1."""
SIX = "6 standard errors"
UNIFORM = "uniform in [0, 1] if the law is right"
A, T = 0.8, 0.2
BOWL = local_entropy.Loss(lambda y: A * y**2 / 2, lambda y: A * y)
"""F = a y^2 / 2, for which the laws are Gaussian and known."""


# ------------------------------------------------------------------------------------------------------------ langevin

PATHS = "langevin.langevin_paths"


@check("langevin")
def transient() -> Iterator[Row]:
    """(2.15): Euler-Maruyama on a quadratic, mean and variance on the way to equilibrium."""
    nu, lr, steps, paths = 0.3, 0.05, 8, 40_000
    x = langevin.langevin_paths(BOWL, np.full((paths, 1), 1.7), nu, lr, steps, seed=41)
    rho = 1 - lr * A
    variance, mean = 2 * nu * lr * (1 - rho ** (2 * steps)) / (1 - rho**2), 1.7 * rho**steps
    yield scored("2.15", PATHS, "E x after 8 steps", x.mean(), mean, math.sqrt(variance / paths))
    yield scored("2.15", PATHS, "Var x after 8 steps", x.var(ddof=1), variance, variance * math.sqrt(2 / paths))


@check("langevin")
def invariant_law() -> Iterator[Row]:
    """(2.16): the law of (2.15) is exp(-F / nu); exp(-F / 2 nu) as printed is that of another temperature."""
    nu, paths, well = 0.4, 30_000, local_entropy.DOUBLE_WELL
    begin = np.where(np.arange(paths) % 2, 1.0, -1.0)[:, None]  # half of the paths in either well
    method = "leimkuhler_matthews"
    sample = langevin.langevin_paths(well, begin, nu, 0.02, 1500, integrator=method)
    law = gibbs.gibbs_law(well.value, nu)
    forms = law.variance(), gibbs.gibbs_law(well.value, 2 * nu).variance()
    measured, tolerance = float(sample.var(ddof=1)), SIGMAS * law.variance_error(paths)
    fits = kstest(sample.ravel(), law.cdf).pvalue
    bowl = langevin.langevin_paths(BOWL, np.zeros((20_000, 1)), 0.3, 0.1, 120, integrator=method, seed=42)
    variance, exact = float(bowl.var(ddof=1)), 0.3 / A
    of = f"gibbs.gibbs_law, {PATHS}"
    what = "double well: E x^2 under exp(-F / nu), against sampled; printed exp(-F / 2 nu)"
    quadratic = "quadratic: sampled Var x, against nu / a; printed 2 nu / a"
    error = exact * math.sqrt(2 / 20_000)
    yield misprint("2.16", f"gibbs.GibbsLaw.variance, {PATHS}", what, forms, measured, tolerance, SIX)
    yield within("2.16", of, "p-value of Kolmogorov and Smirnov", fits, 0.5, (1e-6, 1), UNIFORM)
    yield misprint("2.16", PATHS, quadratic, (variance, 2 * variance), exact, SIGMAS * error, SIX)


@check("langevin")
def minibatch_noise() -> Iterator[Row]:
    """(2.14), (2.15): mini-batch noise is Langevin noise of temperature lr nu_mb / d, not nu_mb."""
    a, d, trace, lr, paths = 2.0, 3, 1.0, 0.05, 4000
    x = langevin.minibatch_paths(curvature=a, d=d, trace=trace, lr=lr, paths=paths)
    measured, exact = float(np.mean(x**2)), lr * trace / d / (a * (2 - lr * a))
    error = exact * math.sqrt(2 / (paths * d))
    sampled, printed = langevin.minibatch_temperature(trace, lr, d) / a, trace / 2 / a
    of, of_T = "langevin.minibatch_paths, optimizers.sgd.Sgd.step", "langevin.minibatch_temperature"
    what = "T / a with T = lr nu_mb / d, against that variance; printed nu = nu_mb"
    why, tolerance = "6 standard errors + first order in lr: lr a / 2 of it", SIGMAS * error + lr * a / 2 * exact
    yield scored("2.11, 2.12", of, "Var x of mini-batch SGD on a quadratic", measured, exact, error)
    yield misprint("2.14, 2.15", of_T, what, (sampled, printed), measured, tolerance, why)


@check("langevin")
def annealing() -> Iterator[Row]:
    """Simulated annealing leaves the wrong well of (y^2 - 1)^2 + 0.3 y, a quench does not."""
    tilt, lr, steps, paths, well = 0.3, 0.02, 600, 4000, local_entropy.DOUBLE_WELL
    loss = local_entropy.Loss(lambda y: well.value(y) + tilt * y, lambda y: well.gradient(y) + tilt)
    top = float(np.sort(np.roots([4, 0, -4, tilt]).real)[1])  # the barrier between the wells
    y, spacing = np.linspace(-2.4, 2.4, 241, retstep=True)
    left, ahead = y < top, y - lr * loss.gradient(y)
    for name, temperatures in (
        ("annealed", np.geomspace(0.5, 0.08, steps)),
        ("quenched", np.full(steps, 0.2)),
    ):
        law = norm.pdf(y, 1 - lr * float(loss.gradient(np.array(1.0))), math.sqrt(2 * temperatures[0] * lr)) * spacing
        for temperature in temperatures[1:]:  # transition matrices of the chain: its exact law on a grid
            law = law @ (norm.pdf(y[None] - ahead[:, None], scale=math.sqrt(2 * temperature * lr)) * spacing)
        exact = float(law[left].sum())
        share = float(np.mean(langevin.langevin_paths(loss, np.ones((paths, 1)), temperatures, lr, steps) < top))
        error, of = math.sqrt(exact * (1 - exact) / paths), "optimizers.langevin.Langevin.step"
        yield scored("2.16", of, f"share in the deeper well, {name}", share, exact, error)


# ------------------------------------------------------------------------------------------------------ homogenisation

NOISES: tuple[homogenisation.Temperature, ...] = ("consistent", "printed")
EPSILONS = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
FAST_SLOW, AVERAGED = "homogenisation.fast_slow_paths", "homogenisation.averaged_path"


@experiment
def convergence() -> homogenisation.ConvergenceErrors:
    """Return the errors for EPSILONS."""
    return homogenisation.convergence_errors(LOSS, START, GAMMA, NU, EPSILONS)


@experiment
def extrapolated(temperature: homogenisation.Temperature) -> tuple[float, float]:
    """Return the mean of x(1) for epsilon -> 0 (Richardson extrapolation from 1/32 and 1/64) and its standard error."""
    paths = [
        homogenisation.fast_slow_paths(LOSS, START, GAMMA, NU, epsilon, temperature=temperature)[0]
        for epsilon in (1 / 32, 1 / 64)
    ]
    errors = [float(standard_error(x.reshape(2, -1).mean(0))) for x in paths]  # of antithetic pairs
    return 2 * float(paths[1].mean()) - float(paths[0].mean()), math.hypot(2 * errors[1], errors[0])


def slow_ascent() -> float:
    """Return X(1) of dX/ds = + grad F_gamma(X), the printed (5.12)."""

    def velocity(s: float, X: Array) -> Array:
        return local_entropy.local_entropy(LOSS.value, X, GAMMA, NU).gradient

    return float(solve_ivp(velocity, (0, 1), [START], rtol=1e-8, atol=1e-8).y[0, -1])


@check("homogenisation")
def orders() -> Iterator[Row]:
    """(5.14) -> (5.12) as epsilon -> 0: weak order 1, strong order 1/2."""
    found = convergence()
    weak, strong = (fitted_slope(EPSILONS, errors) for errors in (found.weak, found.strong))
    of, why = f"{FAST_SLOW}, {AVERAGED}", "first order: half the error at 1/32, + 6 standard errors"
    last = found.weak[-1] - found.weak[-2] / 2
    tolerance = SIGMAS * math.hypot(found.weak_error[-1], found.weak_error[-2])
    yield within("5.12", of, "weak order in epsilon", weak, 1, (0.9, 1.1), "next order is 1/2")
    yield within("5.12", of, "strong order in epsilon", strong, 0.5, (0.44, 0.52), "next orders are 1 and 0")
    yield agrees("5.5", of, "weak error at epsilon = 1/64 - half of that at 1/32", last, 0, tolerance, why)


@check("homogenisation")
def descent() -> Iterator[Row]:
    """(5.11)-(5.13): the slow point descends; the printed signs climb."""
    path = float(homogenisation.averaged_path(LOSS, START, GAMMA, NU, [1.0])[0])
    measured, error = extrapolated("consistent")
    residuals = [homogenisation.transport_residual(LOSS, START, 0.6, GAMMA, NU, sign=sign) for sign in (-1.0, 1.0)]
    durations = (2.0, 4.0, 8.0, 16.0, 32.0)
    averages = homogenisation.ergodic_average(LOSS, START, GAMMA, NU, durations)
    exact = float(local_entropy.local_entropy(LOSS.value, START, GAMMA, NU).gradient)
    mean, sampling = float(averages[-1].mean()), float(standard_error(averages[-1]))
    slope = fitted_slope(durations, np.sqrt(((averages - exact) ** 2).mean(1)).tolist())
    of_x, of_y = f"{AVERAGED}, homogenisation.averaged_velocity", "homogenisation.ergodic_average"
    of_step, tolerance = "optimizers.local_entropy.LocalEntropy.step", SIGMAS * error + 2 / 64**2
    climb = "X(1), against E x(1) of (5.14) as epsilon -> 0; printed sign +"
    transported = "residual of w_s = - grad F_gamma . grad w; printed +"
    average = "time average of (x - y) / gamma, against grad F_gamma; printed y - x"
    why, differences = "6 standard errors + 2 epsilon^2", "central differences, step^2 = 1e-6"
    yield agrees("5.12", of_x, "X(1) (known)", path, 0.9815554130, 1e-9, "10 digits were written down")
    yield misprint("5.12", f"{AVERAGED}, {FAST_SLOW}", climb, (path, slow_ascent()), measured, tolerance, why)
    yield misprint("5.11", "homogenisation.transport_residual", transported, residuals, 0, 1e-6, differences)
    yield misprint("5.13", of_y, average, (mean, -mean), exact, SIGMAS * sampling, SIX)
    yield within("5.13", of_step, "its error falls like S to the power", slope, -0.5, (-0.6, -0.4), "next is -1")


@check("homogenisation")
def temperature() -> Iterator[Row]:
    """(5.14): the noise must be sqrt(4 nu / eps); as printed it averages to the local entropy of nu / 2."""
    limit, half = (float(homogenisation.averaged_path(LOSS, START, GAMMA, nu, [1.0])[0]) for nu in (NU, NU / 2))
    (measured, error), (printed, printed_error) = map(extrapolated, NOISES)
    law = local_entropy.fast_law(LOSS.value, 0.4, GAMMA, NU)
    samples = [homogenisation.invariant_sample(LOSS, 0.4, GAMMA, NU, t, 20_000) for t in NOISES]
    variances, exact = [float(y.var(ddof=1)) for y in samples], float(law.variance())
    fits, of = kstest(samples[0], law.cdf).pvalue, f"{FAST_SLOW}, optimizers.paper.PaperSDE.step"
    of_law, bias, why = "homogenisation.invariant_sample", 2 / 64**2, "6 standard errors + 2 epsilon^2"
    what = "E x(1) as epsilon -> 0, against X(1); printed noise sqrt(2 nu / eps)"
    other, tolerance = "printed noise: E x(1) is X(1) of nu / 2", SIGMAS * printed_error + bias
    frozen = "Var y of (5.14) at frozen x, against (4.21); printed noise gives half of it"
    yield misprint("5.14", of, what, (measured, printed), limit, SIGMAS * error + bias, why)
    yield agrees("5.14", of, other, printed, half, tolerance, why)
    yield misprint("5.16", of_law, frozen, variances, exact, SIGMAS * law.variance_error(20_000), SIX)
    yield within("5.16", of_law, "p-value of Kolmogorov and Smirnov", fits, 0.5, (1e-6, 1), UNIFORM)


@check("homogenisation")
def fokker_planck() -> Iterator[Row]:
    """(5.7), (5.9), (5.10), (5.15), (5.16): generator and flux of the fast point, and their invariant laws."""
    beta, x = math.sqrt(2 * NU), 0.4  # beta^2 / 2 = nu
    y = np.linspace(-3.5, 3.5, 20_001)

    def law(exponent: float) -> Array:
        weight = np.exp(-exponent * (LOSS.value(y) + (x - y) ** 2 / (2 * GAMMA)))
        return weight / trapezoid(weight, y)

    def mean(temperature: float, density: Array, first: Array, second: Array) -> float:
        generated = homogenisation.generator(LOSS, x, GAMMA, temperature, y, first, second)
        return float(trapezoid(generated * density, y))

    consistent = law(1 / (2 * NU))  # (4.21), invariant for T = 2 nu
    functions = ((1 + 0 * y, 0 * y), (2 * y, 2 + 0 * y), (np.cos(y), -np.sin(y)))  # f', f''
    invariant = max(abs(mean(2 * NU, consistent, *f)) for f in functions)
    other = law(1 / NU)  # the same at T = nu: E L_0 f = (2 nu - nu) E f''
    moved, exact = mean(2 * NU, other, 3 * y**2, 6 * y), NU * float(trapezoid(6 * y * other, y))
    bump = norm.pdf(y, 0.5, 0.6)
    flux = homogenisation.flux(LOSS, x, GAMMA, NU, y, bump)
    adjoint = mean(NU, bump, np.cos(y), -np.sin(y)) + float(trapezoid(np.cos(y) * flux, y))
    laws = [homogenisation.flux(LOSS, x, GAMMA, NU, y, law(e)) for e in (2 / beta**2, beta)]

    epsilon, kappa = 0.25, A + 1 / GAMMA

    def spread(s: float) -> Array:  # the Gaussian law of y from N(1, 0.1) on the quadratic at T = beta^2 / 2, x = 0
        decay = math.exp(-kappa * s / epsilon)
        return norm.pdf(y, decay, math.sqrt(NU / kappa + (0.1 - NU / kappa) * decay**2))

    rate = central(lambda h: spread(0.1 + h), 1e-3)
    residuals = [
        largest(rate - np.gradient(homogenisation.flux(BOWL, 0.0, GAMMA, t, y, spread(0.1)), y) / epsilon)
        / largest(rate)
        for t in (beta**2 / 2, beta / 2)
    ]
    of, of_flux = "homogenisation.generator", "homogenisation.flux"
    why = "differences of 2nd order on 20,001 points"
    equation = "residual of rho_t = flux' / epsilon, relative; printed (1/2) sqrt(2 nu) for T"
    stationary = "largest flux of exp(-2 G / beta^2); printed exp(-beta G)"
    yield agrees("5.7", of, "E L_0 y^3 at T = 2 nu under exp(-G / nu) is nu E 6y", moved, exact, 1e-9, ROUNDING)
    yield agrees("5.10", of, "largest mean of L_0 f under (4.21), T = 2 nu", invariant, 0, 1e-9, ROUNDING)
    yield agrees("5.9", f"{of}, {of_flux}", "mean of L_0 sin y + mean of cos y flux", adjoint, 0, 1e-5, why)
    yield misprint("5.15", of_flux, equation, residuals, 0, 1e-4, why)
    yield misprint("5.16", of_flux, stationary, laws, 0, 1e-4, why)


@check("homogenisation")
def kolmogorov_equations() -> Iterator[Row]:
    """(5.6), (5.8): without the slow part h . grad_x neither the mean of x nor its law would change."""
    epsilon, s, paths = 0.25, 1.0, 20_000
    x, _ = homogenisation.fast_slow_paths(BOWL, 1.0, GAMMA, T / 2, epsilon, lr=0.02, paths=paths, seed=6)
    exact, covariance = homogenisation.quadratic_moments(A, GAMMA, T, epsilon, s)
    variance, expected = x.var(ddof=1), covariance[0, 0]

    def density(s: float) -> Array:
        return multivariate_normal.pdf(points, *homogenisation.quadratic_moments(A, GAMMA, T, epsilon, s))  # pyright: ignore

    points = exact + np.random.default_rng(3).normal(size=(200, 2)) * np.sqrt(np.diag(covariance))
    px, py = points.T
    rate = central(lambda h: density(s + h), 1e-3)
    rho, precision = density(s), np.linalg.inv(covariance)
    rho_x, rho_y = (-(points - exact) @ precision).T * rho
    rho_yy = rho_y**2 / rho - precision[1, 1] * rho
    drift, kappa = A * py + (py - px) / GAMMA, A + 1 / GAMMA
    fast = (drift * rho_y + kappa * rho + T * rho_yy) / epsilon
    slow = -((py - px) * rho_x - rho) / GAMMA  # - div_x(h rho)
    residuals = [largest(rate - fast - slow) / largest(rate), largest(rate - fast) / largest(rate)]
    of, of_both = "homogenisation.quadratic_moments", f"{FAST_SLOW}, homogenisation.quadratic_moments"
    what = "E x(1) at epsilon = 1/4, against w with the slow part; printed: constant in time"
    law = "residual in the law of (x, y), relative; printed: without - div_x(h rho)"
    why = "first order in the step: lr |1 - E x(1)| / 8; pairs cancel the sampling error"
    error, pairs = expected * math.sqrt(2 / (paths / 2)), "6 standard errors; pairs (i, -i) share one square"
    yield misprint("5.6", of_both, what, (x.mean(), 1.0), exact[0], 0.02 * (1 - exact[0]) / 8, why)
    yield misprint("5.8", of, law, residuals, 0, 1e-6, STENCIL)
    yield scored("5.5", of_both, "Var x(1) at epsilon = 1/4", variance, expected, error, pairs)


@check("homogenisation")
def milstein() -> Iterator[Row]:
    """(5.3), (5.4), (5.17): with additive noise Euler-Maruyama is Milstein's method, strong order 1."""
    paths, finest, temperature = 1000, 2048, 0.2
    draw = normals(0, paths)
    fine = torch.stack([draw(k + 1) for k in range(finest)])
    x = np.full((paths, 1), 0.4)
    for xi in fine.numpy():  # the same Brownian path in fine steps, independent of langevin_paths
        x = x - LOSS.gradient(x) / finest + math.sqrt(2 * temperature / finest) * xi
    errors = []
    for steps in (16, 32, 64, 128):
        xi = fine.unflatten(0, (steps, finest // steps)).sum(1) / math.sqrt(finest // steps)
        found = langevin.langevin_paths(
            LOSS, np.full((paths, 1), 0.4), temperature, 1 / steps, steps, noise=lambda k, xi=xi: xi[max(k - 1, 0)]
        )
        errors.append(math.sqrt(np.mean((found - x) ** 2)))
    slope = fitted_slope([1 / 16, 1 / 32, 1 / 64, 1 / 128], errors)
    yield within("5.3, 5.4, 5.17", PATHS, "strong order in the step", slope, 1, (0.85, 1.2), "next order is 1/2")


@check("homogenisation")
def passive_scalar() -> Iterator[Row]:
    """(5.1), (5.2): with a given divergence-free h (here a shear) the limit p = 2 is a diffusion, not Burgers."""
    nu, V, epsilon, paths = 0.5, 1.0, 0.1, 10_000
    x = homogenisation.passive_scalar_paths(nu, V, epsilon, paths)
    limit, rate = nu + V**2 / (2 * nu), nu / epsilon**2
    exact = nu + V**2 / (2 * nu) * (1 + math.expm1(-rate) / rate)
    fourth = float(np.mean((x - x.mean()) ** 4)) / float(x.var()) ** 2
    measured = float(x.var(ddof=1)) / 2
    error, of = exact * math.sqrt((fourth - 1) / paths), "homogenisation.passive_scalar_paths"
    what = "the same, against nu + V^2 / 2 nu of its limit; printed: Burgers' equation, diffusivity nu"
    tolerance, why = abs(limit - exact) + SIGMAS * error, "finite epsilon + 6 standard errors"
    yield scored("5.2", of, "Var x / 2t of a passive scalar in a shear flow", measured, exact, error, SAMPLING)
    yield misprint("5.1, 5.2", of, what, (measured, nu), limit, tolerance, why)


@check("homogenisation")
def scoping() -> Iterator[Row]:
    """If gamma falls as fast as s rises, x follows a characteristic, for nu -> 0 to the proximal point."""
    gamma0, nu = 0.5, 2e-3
    arrived = float(homogenisation.averaged_path(LOSS, START, lambda s: gamma0 - s, nu, [gamma0 * 0.998])[0])
    prox = float(local_entropy.moreau(LOSS.value, np.array([START]), gamma0).prox[0])
    of, what = f"{AVERAGED}, local_entropy.moreau", "dX/ds = -grad F_(gamma - s)(X) arrives at prox F"
    yield agrees("5.12", of, what, arrived, prox, nu, "first order in nu")
