"""The checks of `burgersgd verify` for the local entropy: (4.1), (4.3), (4.20)-(4.22)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from burgersgd.theory import burgers, gibbs, local_entropy
from burgersgd.theory.paths import standard_error
from burgersgd.theory.quadrature import Array
from burgersgd.theory.verify_cole_hopf import MIXTURE, NU, POINTS, T, integral, well, well_slope
from burgersgd.theory.verify_rows import (
    QUADRATURE,
    STENCIL,
    Row,
    agrees,
    check,
    derivatives,
    largest,
    misprint,
    scored,
    within,
)

F_GAMMA, SLOPE = "local_entropy.local_entropy", "local_entropy.LocalEntropyAt.gradient"
KNOWN_MEAN, KNOWN_SLOPE = 0.71910416918, -1.06368056393
"""E y and grad F_gamma of the double well at x = 0.4, gamma = 0.3, nu = 0.1, computed independently."""


@check("local_entropy")
def closed_forms() -> Iterator[Row]:
    """(4.1) by quadrature against closed forms: quadratic, Rastrigin's series, a mixture in the plane."""
    a, c, x = 1.5, 0.7, np.array([-1.1, 0.2, 1.9])
    by_sum = local_entropy.local_entropy(lambda y: a / 2 * (y - c) ** 2, x, 0.5, 0.2)
    bowl = by_sum.value - local_entropy.quadratic(x[:, None], [[a]], [c], 0.5, 0.2).value
    rough, at = local_entropy.rastrigin_loss(1.0, 0.5, 4 * math.pi), np.array([0.7])
    value = local_entropy.rastrigin(at, 1.0, 0.5, 4 * math.pi, 0.05, 0.1).value[0]
    slope = local_entropy.local_entropy(rough, at, 0.05, 0.1).gradient[0]
    known_value, known = 0.5954848032193834, 2.8201428303240554
    places = np.array([[0.4, 0.1], [-0.6, 0.8]])
    plane = local_entropy.local_entropy(local_entropy.gaussian_mixture_loss(*MIXTURE, 0.2), places, 0.5, 0.2)
    difference = local_entropy.gaussian_mixture(places, *MIXTURE, 0.5, 0.2).value - plane.value
    of, ofs = "local_entropy.rastrigin", f"{F_GAMMA}, local_entropy.gaussian_mixture"
    of_quadratic = f"{F_GAMMA}, local_entropy.quadratic"
    yield agrees("4.1", of_quadratic, "quadratic: quadrature - closed form", bowl, 0, 1e-11, QUADRATURE)
    yield agrees("4.1", of, "Rastrigin's loss at 0.7, series", value, known_value, 1e-12, "16 digits")
    yield agrees("4.20", f"{SLOPE}, {F_GAMMA}", "its slope, quadrature", slope, known, 1e-9, QUADRATURE)
    yield agrees("4.1", ofs, "mixture in 2-D: quadrature - closed form", difference, 0, 1e-9, QUADRATURE)


@check("local_entropy")
def definition() -> Iterator[Row]:
    """(4.1): as gamma -> 0 the local entropy tends to F; two misprints of (4.1) do not."""
    gamma, nu, x = 1e-3, 0.2, np.array([[0.4, -1.2]])
    curvature = np.array([[1.5, 0.2], [0.2, 0.8]])
    F, F_well = float(x[0] @ curvature @ x[0]) / 2, float(well(np.array(0.4)))
    value = float(local_entropy.quadratic(x, curvature, np.zeros(2), gamma, nu).value[0])
    by_sum = float(local_entropy.local_entropy(well, 0.4, gamma, nu).value)
    wrong = value - 2 * nu * 2 * math.log(2 * math.pi * 2 * nu * gamma)  # (2 pi v)^(+d/2) instead of ^(-d/2), d = 2
    why = "gamma |nu Lap F - |grad F|^2 / 2|, the first-order term"
    forms, in_2d = (by_sum - F_well, -by_sum - F_well), (value - F, wrong - F)
    of, what = "local_entropy.quadratic", "the same in 2-D; printed exponent d / 2"
    yield misprint("4.1", F_GAMMA, "F_gamma - F, gamma = 0.001; printed sign", forms, 0, 1.4e-3, why)
    yield misprint("4.1", of, what, in_2d, 0, 1.4e-3, why)


@check("local_entropy")
def gradient() -> Iterator[Row]:
    """(4.20)-(4.22): two forms of the gradient, and the measure under which they are means."""
    at = local_entropy.local_entropy(local_entropy.DOUBLE_WELL, POINTS, T, NU)
    d = derivatives(lambda x, t: local_entropy.local_entropy(well, x, t, NU).value, POINTS, T, 1e-3)
    assert at.mean_gradient is not None
    forms = [sign * at.gradient - d.x for sign in (1, -1)]
    second = at.mean_gradient - at.gradient
    law = local_entropy.fast_law(well, 0.4, T, NU)

    def unnormalised(y: Array) -> Array:
        return np.exp(-well(y) / (2 * NU) - (0.4 - y) ** 2 / (4 * NU * T))

    Z = integral(unnormalised, -4, 5)
    y = np.linspace(-4, 5, 901)
    density = law.density(y) - unnormalised(y) / Z
    mirrored = gibbs.gibbs_law(lambda y: well(0.4 - y) + y**2 / (2 * T), 2 * NU)  # rho_2(y) = rho_1(x - y)
    shifted = float(mirrored.expectation(lambda y: well_slope(0.4 - y)))
    ratio, of, digits = math.exp(law.log_z) / Z, "local_entropy.fast_law", "11 digits"
    what = "mean of (x - y) / gamma - slope of F_gamma; printed y - x"
    in_Z = "Z of the law over + the integral; printed: minus the integral"
    yield misprint("4.20", f"{SLOPE}, {F_GAMMA}", what, forms, 0, 1e-7, STENCIL)
    yield agrees("4.20", f"{SLOPE}, {F_GAMMA}", "its second form, the mean of F'(y)", second, 0, 1e-10, QUADRATURE)
    yield agrees("4.20", of, "E y at x = 0.4 (known)", float(law.mean()), KNOWN_MEAN, 1e-10, digits)
    yield agrees("4.21", of, "density rho_1 - exp(-G / 2 nu) / Z", density, 0, 1e-9, QUADRATURE)
    yield agrees("4.21", "gibbs.gibbs_law", "mean of F'(x - y) under rho_2", shifted, KNOWN_SLOPE, 1e-9, digits)
    yield misprint("4.22", of, in_Z, (ratio, -ratio), 1, 1e-11, QUADRATURE)


@check("local_entropy")
def hessian() -> Iterator[Row]:
    """Oleinik's bound: the Hessian of the local entropy is at most 1 / gamma, however steep F is."""
    at = local_entropy.local_entropy(well, POINTS, T, NU)
    d = derivatives(lambda x, t: local_entropy.local_entropy(well, x, t, NU).gradient, POINTS, T, 1e-3)
    error, gamma, steepest = at.hessian - d.x, 0.5, 2.8  # F'' <= 2.8 on the ripple
    bound = steepest / (1 + gamma * steepest)
    x = math.pi / 2 * (1 + gamma) + np.linspace(-0.1, 0.1, 11)  # the proximal point of the middle is pi / 2
    largest_found = float(local_entropy.local_entropy(local_entropy.RIPPLE, x, gamma, 1e-3).hessian.max())
    of, what = "local_entropy.LocalEntropyAt.hessian", "largest F_gamma'' where F'' <= 2.8, nu = 0.001"
    yield agrees("4.20", of, "1 / gamma - Var y / (2 nu gamma^2) - slope of w", error, 0, 1e-6, STENCIL)
    yield within("4.20", of, what, largest_found, bound, (0.99 * bound, bound), "L / (1 + gamma L); first order in nu")


@check("local_entropy")
def limits() -> Iterator[Row]:
    """The limit gamma -> 0 is F, the limit nu -> 0 the Moreau envelope (Hopf-Lax)."""
    x, errors = np.array([0.4]), []
    for gamma in (1e-2, 5e-3):
        first = well(x) + gamma * (NU * (12 * x**2 - 4) - well_slope(x) ** 2 / 2)
        errors.append(largest(local_entropy.local_entropy(well, x, gamma, NU).value - first))
    rate, rough, gamma = math.log2(errors[0] / errors[1]), local_entropy.RIPPLE, 0.5
    envelope = local_entropy.moreau(rough.value, np.array([1.2]), gamma)
    prox = float(envelope.prox[0])
    curvature, third = 1 - 1.8 * math.cos(2 * prox), 3.6 * math.sin(2 * prox)
    of = f"{F_GAMMA}, local_entropy.moreau"
    yield within("4.1", F_GAMMA, "order of F_gamma - F - gamma (...)", rate, 2, (1.8, 2.2), "the next order is 1")
    for nu in (1e-2, 1e-3):
        found = local_entropy.local_entropy(rough.value, np.array([1.2]), gamma, nu)
        gap, expected = float((found.value - envelope.value)[0]), nu * math.log(1 + gamma * curvature)
        what, why = f"F_gamma - Moreau envelope, nu = {nu:g}", "the next term is O(nu^2)"
        yield agrees("4.1", of, what, gap, expected, 2 * nu**2, why)
    shift = -nu * third / (curvature + 1 / gamma) ** 2
    off = float(found.mean[0]) - prox
    yield agrees("4.21", of, "E y - prox, nu = 0.001", off, shift, 2 * nu**2, "the next term is O(nu^2)")


@check("local_entropy")
def burgers_flow() -> Iterator[Row]:
    """(4.3): the solver started from grad F reaches grad F_gamma at time gamma."""
    loss, gamma, nu = local_entropy.RIPPLE, 0.5, 0.1
    errors = []
    nodes, weights = np.polynomial.legendre.leggauss(2)
    for cells in (256, 512, 1024):
        x = burgers.cell_centers(cells, -5.0, 5.0)
        inside = (x > 0) & (x < 2)  # the loss is even
        start = burgers.cell_averages(loss.gradient, cells, -5.0, 5.0)
        found = burgers.solve(start, dx=10 / cells, times=[gamma], nu=nu, boundary="no_flux").values[-1]
        at = x[inside][:, None] + 5 / cells * nodes
        exact = local_entropy.local_entropy(loss.value, at.ravel(), gamma, nu).gradient.reshape(at.shape) @ weights / 2
        errors.append(largest(found[inside] - exact))
    rate, of = math.log2(errors[-2] / errors[-1]), f"burgers.solve, {SLOPE}"
    why = "a third of that on 512 cells; second order: a quarter"
    yield agrees("4.3", of, "largest |solver - grad F_gamma|, 1024 cells", errors[-1], 0, errors[-2] / 3, why)
    yield within("4.3", of, "order of that error in dx", rate, 2, (1.6, 2.4), "largest error; next order is 1")


@check("local_entropy")
def monte_carlo() -> Iterator[Row]:
    """The estimate that training uses: the mean of y over a cycle, from chains of the optimizer itself."""
    found = local_entropy.monte_carlo(
        local_entropy.DOUBLE_WELL, [0.4], 0.3, 0.1,
        lr=0.02, inner_steps=800, burn_in=200, chains=4000, integrator="leimkuhler_matthews", seed=3,
    )  # fmt: skip
    of = "local_entropy.monte_carlo, optimizers.local_entropy.LocalEntropy.step"
    why = "6 standard errors; bias of this integrator O(lr^2)"
    for each, what in zip(found, ("mean of (x - ybar) / gamma", "mean of F'(y), the other estimate"), strict=True):
        yield scored("4.20", of, what, float(each.mean()), KNOWN_SLOPE, float(standard_error(each.ravel())), why)
