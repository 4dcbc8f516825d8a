"""The checks of `burgersgd verify` for the Cole-Hopf transformation and the local entropy: (4.1)-(4.22)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import fixed_quad

from burgersgd.theory import burgers, cole_hopf, local_entropy, traffic
from burgersgd.theory.verify_pde import ROUNDING, STENCIL, derivatives, largest
from burgersgd.theory.verify_rows import Row, agrees, check, misprint, scored, within

Array = NDArray[np.float64]

NU, T = 0.1, 0.3  # t = gamma: the time of the equation is the width of the local entropy
POINTS = np.linspace(-1.4, 1.5, 30)
QUADRATURE = "quadrature to rounding"


def well(y: Array) -> Array:
    """Return the double well (y^2 - 1)^2, the loss F of most rows."""
    return local_entropy.DOUBLE_WELL.value(y)


def well_slope(y: Array) -> Array:
    """Return F' = 4 y (y^2 - 1)."""
    return local_entropy.DOUBLE_WELL.gradient(y)


def integral(f: Callable[[Array], Array], left: float, right: float) -> float:
    """Return the integral of f by 200 Gauss-Legendre nodes."""
    return float(fixed_quad(f, left, right, n=200)[0])


# ----------------------------------------------------------------------------------------------------------- cole_hopf


@check("cole_hopf")
def exact_solutions() -> list[Row]:
    """The classical solutions at points computed independently, and Riemann's problem by quadrature."""
    x = np.linspace(-1, 1, 21)
    jump = cole_hopf.w_from_velocity(
        x, 0.5, 0.05, lambda y: np.where(y < 0, 1.2, -0.3), max_speed=1.2, breakpoints=[0.0]
    )
    values = [
        ("Riemann's problem (x = 0.3, t = 0.8)", cole_hopf.riemann(0.3, 0.8, 0.1, 1.2, -0.3), 0.6308433687916),
        ("Riemann's problem (x = -0.7, t = 1)", cole_hopf.riemann(-0.7, 1.0, 0.1, 1.2, -0.3), None),
        ("N-wave (x = 0.5, t = 2, a = 3)", cole_hopf.n_wave(0.5, 2.0, 0.02, 3.0), 0.0510695252527),
        ("hump (x = 0.5, t = 1, mass 1)", cole_hopf.hump(0.5, 1.0, 0.1, 1.0), 0.6892130172846),
        ("sine wave (x = 0.25, t = 0.5)", cole_hopf.sine(0.25, 0.5, 0.05), -0.7460565282439),
    ]
    why = "13 digits were written down"
    rows = [agrees("3.13", what, float(v), known, 1e-12, why) for what, v, known in values if known is not None]
    difference = largest(jump - cole_hopf.riemann(x, 0.5, 0.05, 1.2, -0.3))
    return [*rows, agrees("4.16", "Riemann's problem: quadrature - closed form", difference, 0, 1e-10, QUADRATURE)]


@check("cole_hopf")
def hamilton_jacobi() -> list[Row]:
    """-2 nu log psi solves (4.4), its slope Burgers' equation; with the printed sign not.

    Implements Eq. (4.4).
    """

    def phi(x: Array, t: float) -> Array:
        return cole_hopf.phi(x, t, NU, well)

    def residual(sign: float) -> float:
        _, f_t, f_x, f_xx = (sign * v for v in derivatives(phi, POINTS, T, 2e-3))
        return largest(f_t + f_x**2 / 2 - NU * f_xx)

    d = derivatives(lambda x, t: cole_hopf.w(x, t, NU, well), POINTS, T, 2e-3)
    at_0 = float(cole_hopf.phi(0.0, T, NU, well)) - 1
    h = 1e-4

    def rate(t: float) -> float:  # phi_t at x = 0 from Burgers' side, nu w_x - w^2 / 2
        w = cole_hopf.w(np.array([-h, 0, h]), t, NU, well, slope=well_slope)
        return float(NU * (w[2] - w[0]) / (2 * h) - w[1] ** 2 / 2)

    by_flow = float(fixed_quad(np.vectorize(rate), 0, T, n=24)[0])
    return [
        misprint("4.1", "residual of (4.4); printed sign + 2 nu log", residual(1), residual(-1), 0, 1e-5, STENCIL),
        agrees("4.4", "residual phi_t + phi_x^2 / 2 - nu phi_xx", residual(1), 0, 1e-5, STENCIL),
        agrees("4.16", "residual w_t + w w_x - nu w_xx", largest(traffic.burgers_residual(*d, NU)), 0, 1e-4, STENCIL),
        misprint(
            "4.15",
            "phi(0, 0.3) - F(0); printed phi(0, t) = 0 keeps it where it is",
            at_0,
            0.0,
            by_flow,
            1e-5,
            "phi_t from w by differences",
        ),
    ]


@check("cole_hopf")
def transformation() -> list[Row]:
    """(4.9)-(4.11): the transformation turns Hamilton-Jacobi into heat, whatever psi is."""
    rng = np.random.default_rng(1)
    psi = rng.uniform(0.5, 2, 50)
    psi_t, psi_x, psi_xx = rng.normal(size=(3, 50))
    phi_t, phi_x, phi_xx = cole_hopf.phi_derivatives(psi, psi_t, psi_x, psi_xx, NU)
    heat = cole_hopf.heat_residual(psi_t, psi_xx, NU)
    left = phi_t + phi_x**2 / 2 - NU * phi_xx
    back = cole_hopf.psi_from_phi(cole_hopf.phi_from_psi(psi, NU), NU)
    d = derivatives(lambda x, t: np.exp(cole_hopf.log_psi(x, t, NU, well)), POINTS, T, 2e-3)
    residual = largest(cole_hopf.heat_residual(d.t, d.xx, NU)) / largest(d.t)
    grad = largest(cole_hopf.grad_psi(POINTS, T, NU, well) - d.x) / largest(d.x)
    slope = largest(cole_hopf.phi_derivatives(d.value, d.t, d.x, d.xx, NU)[1] - cole_hopf.w(POINTS, T, NU, well))
    return [
        agrees("4.9", "psi -> phi -> psi", largest(back - psi), 0, 1e-12, ROUNDING),
        agrees(
            "4.10", "(4.4) = -(2 nu / psi) (4.11), any psi", largest(left + 2 * NU / psi * heat), 0, 1e-12, ROUNDING
        ),
        agrees("4.11", "residual psi_t - nu psi_xx over max |psi_t|", residual, 0, 1e-5, STENCIL),
        agrees("4.19", "psi_x as an integral - differences, relative", grad, 0, 1e-6, STENCIL),
        agrees("4.12", "-2 nu psi_x / psi = w, at t > 0 as well", slope, 0, 1e-6, STENCIL),
    ]


@check("cole_hopf")
def heat_kernel() -> list[Row]:
    """(4.14), (4.17): convolution with a kernel of mass 1 in every dimension; printed for d = 1 only."""
    x = np.array([-0.8, 0.4])
    direct = [
        integral(
            lambda y, at=at: cole_hopf.heat_kernel(at - y, T, NU) * cole_hopf.psi_from_phi(well(y), NU), at - 4, at + 4
        )
        for at in x
    ]
    relative = largest(np.exp(cole_hopf.log_psi(x, T, NU, well)) / direct - 1)
    variance = 2 * NU * T
    mass = integral(lambda r: cole_hopf.heat_kernel(r, T, NU, d=2) * 2 * math.pi * r, 0, 12 * math.sqrt(variance))
    printed = mass * math.sqrt(2 * math.pi * variance)  # one factor (4 pi nu t)^(-1/2) where d = 2 needs two
    y = np.linspace(-2, 2, 9)
    penalised = cole_hopf.penalised_loss(0.4, y, T, well)
    return [
        agrees("4.14, 4.17", "psi by quadrature / direct convolution - 1", relative, 0, 1e-11, QUADRATURE),
        misprint("4.14", "mass of the kernel in 2-D; printed exponent -1/2", mass, printed, 1.0, 1e-10, QUADRATURE),
        agrees(
            "4.18",
            "G = F(y) + (x - y)^2 / 2t",
            largest(penalised - well(y) - (0.4 - y) ** 2 / (2 * T)),
            0,
            1e-12,
            ROUNDING,
        ),
    ]


@check("cole_hopf")
def initial_data() -> list[Row]:
    """What stands at t = 0: w = F', not w = F; (4.8) from 0, not from -infinity."""
    t = 1e-4
    w = cole_hopf.w(POINTS, t, NU, well, slope=well_slope)
    start = [largest(w - well_slope(POINTS)), largest(w - well(POINTS))]
    bound = 200 * t  # t |nu F''' - F' F''| <= 180 t on these points

    truth = local_entropy.local_entropy(well, POINTS, T, NU).gradient
    right = cole_hopf.w_from_velocity(POINTS, T, NU, lambda y: well_slope(np.clip(y, -2.5, 2.5)), max_speed=53.0)
    printed = cole_hopf.w_from_velocity(POINTS, T, NU, lambda y: well(np.clip(y, -2.5, 2.5)), max_speed=28.0)
    data = [largest(right - truth), largest(printed - truth)]

    def phi(x: float) -> float:
        return float(cole_hopf.phi(x, T, NU, well))

    def path(left: float) -> float:
        return integral(lambda z: cole_hopf.w(z, T, NU, well), left, 0.9)

    from_0 = path(0.0) - (phi(0.9) - phi(0.0))
    why = "the integral from -R must not depend on R"
    return [
        misprint(
            "4.3, 4.4",
            "w(., t) - F' as t -> 0 (t = 1e-4); printed F for F'",
            start[0],
            start[1],
            0,
            bound,
            "first order in t",
        ),
        misprint(
            "4.12, 4.13, 4.15, 4.16, 4.18",
            "exponent F(y), against grad F_gamma; printed: the integral of F",
            data[0],
            data[1],
            0,
            1e-9,
            QUADRATURE,
        ),
        misprint(
            "4.8",
            "integral of w from 0 = phi(x) - phi(0); printed: from -R, R: 2 -> 3",
            from_0,
            path(-3) - path(-2),
            0,
            1e-9,
            why,
        ),
    ]


@check("cole_hopf")
def vector_fields() -> list[Row]:
    """(4.5) needs a field without rotation: linear solutions w = B(t) x of (3.13) in the plane.

    Implements Eq. (4.5), (4.6), (4.7).
    """

    def residuals(B0: Array) -> tuple[float, float]:
        t = 0.4
        B = B0 @ np.linalg.inv(np.eye(2) + t * B0)
        B_t = -B @ B  # exact: d/dt of the line above
        x = np.random.default_rng(2).normal(size=(2, 20))
        advected = B_t @ x + B @ B @ x  # (w . grad) w = B B x, Laplacian 0
        divergence_form = B_t @ x + B.T @ B @ x  # grad (|w|^2 / 2 - nu div w) = B' B x
        return largest(advected), largest(divergence_form)

    turning, still = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([[1.0, 0.5], [0.5, -0.3]])
    (burgers_turning, conservative), (_, conservative_still) = residuals(turning), residuals(still)
    e = np.eye(2)
    # (4.6) with (4.7): the sum over i < j of (d_i w_j - d_j w_i) e_i ^ e_j, u ^ v = u v' - v u'; d_i w_j = B_ji
    curls = [(B.T - B)[0, 1] * (np.outer(e[0], e[1]) - np.outer(e[1], e[0])) for B in (turning, still)]
    return [
        agrees("3.1", "rotating field: residual of (w . grad) w form", burgers_turning, 0, 1e-12, ROUNDING),
        misprint(
            "4.5",
            "form grad(|w|^2 / 2 - nu div w): field without curl; any field (rotation)",
            conservative_still,
            conservative,
            0,
            1e-12,
            ROUNDING,
        ),
        agrees("4.6, 4.7", "curl of that rotation, its component 1, 2", float(curls[0][0, 1]), 2, 1e-12, ROUNDING),
        agrees("4.6", "largest component of the curl of the gradient", largest(curls[1]), 0, 1e-12, ROUNDING),
    ]


# ------------------------------------------------------------------------------------------------------- local_entropy


@check("local_entropy")
def closed_forms() -> list[Row]:
    """(4.1) by quadrature against closed forms: quadratic, Rastrigin's series, a mixture in the plane."""
    a, c, x = 1.5, 0.7, np.array([-1.1, 0.2, 1.9])
    found = local_entropy.local_entropy(lambda y: a / 2 * (y - c) ** 2, x, 0.5, 0.2)
    exact = a * (x - c) ** 2 / 2 / (1 + a * 0.5) + 0.2 * math.log(1 + a * 0.5)
    rough = local_entropy.rastrigin_loss(1.0, 0.5, 4 * math.pi)
    series = local_entropy.rastrigin(np.array([0.7]), 1.0, 0.5, 4 * math.pi, 0.05, 0.1)
    by_sum = local_entropy.local_entropy(rough, np.array([0.7]), 0.05, 0.1)
    weights, means = np.array([1.0, 0.6]), np.array([[0.0, 0.3], [1.0, -0.5]])
    covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]])
    at = np.array([[0.4, 0.1], [-0.6, 0.8]])

    mixture_loss = local_entropy.gaussian_mixture_loss(weights, means, covariances, 0.2)
    mixture = local_entropy.gaussian_mixture(at, weights, means, covariances, 0.5, 0.2)
    plane = local_entropy.local_entropy(mixture_loss, at, 0.5, 0.2)
    return [
        agrees("4.1", "quadratic: quadrature - closed form", largest(found.value - exact), 0, 1e-11, QUADRATURE),
        agrees(
            "4.1", "Rastrigin's loss at 0.7, series", float(series.value[0]), 0.5954848032193834, 1e-12, "16 digits"
        ),
        agrees("4.20", "its slope, quadrature", float(by_sum.gradient[0]), 2.8201428303240554, 1e-9, QUADRATURE),
        agrees(
            "4.1", "mixture in 2-D: quadrature - closed form", largest(mixture.value - plane.value), 0, 1e-9, QUADRATURE
        ),
    ]


@check("local_entropy")
def definition() -> list[Row]:
    """(4.1), (4.2): as gamma -> 0 the local entropy is F; two misprints of (4.1) are not.

    Implements Eq. (4.2).
    """
    gamma, nu, x = 1e-3, 0.2, np.array([[0.4, -1.2]])
    curvature, center = np.array([[1.5, 0.2], [0.2, 0.8]]), np.zeros(2)
    F = float(x[0] @ curvature @ x[0]) / 2
    value = float(local_entropy.quadratic(x, curvature, center, gamma, nu).value[0])
    d, variance = 2, 2 * nu * gamma
    exponent = value - 2 * nu * d * math.log(2 * math.pi * variance)  # (2 pi v)^(+d/2) instead of ^(-d/2)
    bound = gamma * (nu * 2.3 + 1)  # gamma |nu Lap F - |grad F|^2 / 2|
    grid, step = np.linspace(-6, 6, 6001, retstep=True)
    kernel = cole_hopf.heat_kernel(grid, T, NU)  # variance 2 nu gamma
    convolved = -2 * NU * np.log(np.convolve(np.exp(-well(grid) / (2 * NU)), kernel, "same")[3000:4001:200] * step)
    quadrature = local_entropy.local_entropy(well, grid[3000:4001:200], T, NU).value
    why = "first order in gamma"
    return [
        misprint("4.1", "F_gamma - F, gamma = 0.001; printed sign", value - F, -value - F, 0, bound, why),
        misprint("4.1", "F_gamma - F in 2-D; printed exponent d / 2", value - F, exponent - F, 0, bound, why),
        agrees("4.2", "F_gamma by discrete convolution", largest(convolved - quadrature), 0, 1e-9, QUADRATURE),
    ]


@check("local_entropy")
def gradient() -> list[Row]:
    """(4.20)-(4.22): two forms of the gradient, the measure under which they are means."""
    h = 1e-3
    at = local_entropy.local_entropy(local_entropy.DOUBLE_WELL, POINTS, T, NU)
    d = derivatives(lambda x, t: local_entropy.local_entropy(well, x, t, NU).value, POINTS, T, h)
    forms = [largest(at.gradient - d.x), largest(-at.gradient - d.x)]
    assert at.mean_gradient is not None
    by_cole_hopf = cole_hopf.w(POINTS, T, NU, well)
    law = local_entropy.fast_law(well, 0.4, T, NU)

    def unnormalised(y: Array) -> Array:
        return np.exp(-well(y) / (2 * NU) - (0.4 - y) ** 2 / (4 * NU * T))

    Z = integral(unnormalised, -4, 5)
    mean = integral(lambda y: y * unnormalised(y), -4, 5) / Z
    shifted = integral(lambda y: well_slope(0.4 - y) * unnormalised(0.4 - y), -5, 5) / Z  # rho_2(y) = rho_1(x - y)
    y = np.ravel(law.y)
    density = largest(np.ravel(law.density) - unnormalised(y) / Z)
    mass = integral(unnormalised, -4, 5)
    return [
        misprint(
            "4.20", "mean of (x - y) / gamma - slope of F_gamma; printed y - x", forms[0], forms[1], 0, 1e-7, STENCIL
        ),
        agrees(
            "4.20", "its second form, the mean of F'(y)", largest(at.mean_gradient - at.gradient), 0, 1e-10, QUADRATURE
        ),
        agrees("4.20", "and w(x, gamma) of Cole-Hopf", largest(by_cole_hopf - at.gradient), 0, 1e-10, QUADRATURE),
        agrees("4.20", "E y at x = 0.4 (computed independently)", mean, 0.71910416918, 1e-10, "11 digits"),
        agrees("4.21", "density rho_1 - exp(-G / 2 nu) / Z", density, 0, 1e-9, QUADRATURE),
        agrees("4.21", "mean of F'(x - y) under rho_2", shifted, (0.4 - mean) / T, 1e-9, QUADRATURE),
        misprint("4.22", "mass of rho_1; printed Z = minus the integral", mass / Z, mass / -Z, 1, 1e-12, ROUNDING),
    ]


@check("local_entropy")
def hessian() -> list[Row]:
    """Oleinik's bound: however steep F, the local entropy is 1 / gamma smooth from above."""
    at = local_entropy.local_entropy(well, POINTS, T, NU)
    h = 1e-3
    d = derivatives(lambda x, t: local_entropy.local_entropy(well, x, t, NU).gradient, POINTS, T, h)
    return [
        agrees("4.20", "1/gamma - Var y / (2 nu gamma^2) - slope of w", largest(at.hessian - d.x), 0, 1e-6, STENCIL),
        within(
            "4.20",
            "largest F_gamma'' times gamma (F'' gamma: 6.5)",
            float(at.hessian.max() * T),
            1,
            (0, 1),
            "w_x <= 1/t",
        ),
    ]


@check("local_entropy")
def limits() -> list[Row]:
    """Gamma -> 0 gives F, nu -> 0 the envelope of Moreau and Hopf-Lax."""
    x = np.array([0.4])
    errors = []
    for gamma in (1e-2, 5e-3):
        first = well(x) + gamma * (NU * (12 * x**2 - 4) - well_slope(x) ** 2 / 2)
        errors.append(largest(local_entropy.local_entropy(well, x, gamma, NU).value - first))
    rows = [
        within(
            "4.1", "order of F_gamma - F - gamma (...)", math.log2(errors[0] / errors[1]), 2, (1.8, 2.2), "next is 1"
        )
    ]
    rough = local_entropy.RIPPLE
    envelope = local_entropy.moreau(rough.value, np.array([1.2]), 0.5)
    prox = float(envelope.prox[0])
    curvature = 1 - 1.8 * math.cos(2 * prox)
    for nu in (1e-2, 1e-3):
        found = local_entropy.local_entropy(rough.value, np.array([1.2]), 0.5, nu)
        gap = float((found.value - envelope.value)[0])
        expected = nu * math.log(1 + 0.5 * curvature)
        rows.append(
            agrees("4.1", f"F_gamma - Moreau envelope, nu = {nu:g}", gap, expected, nu**2 * 2, "next term is O(nu^2)")
        )
    rows.append(agrees("4.21", "E y - prox, nu = 0.001", float(found.mean[0]) - prox, 0, 5e-3, "first order in nu"))
    return rows


@check("local_entropy")
def burgers_flow() -> list[Row]:
    """(4.3): the solver started from grad F reaches grad F_gamma at time gamma.

    Implements Eq. (4.3).
    """
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
    rate = math.log2(errors[-2] / errors[-1])
    return [
        agrees("4.3", "largest |solver - grad F_gamma|, 1024 cells", errors[-1], 0, 2e-4, "second order in dx"),
        within("4.3", "order of that error in dx", rate, 2, (1.6, 2.4), "largest error; next order is 1"),
    ]


@check("local_entropy")
def monte_carlo() -> list[Row]:
    """What training computes: the mean of y over a cycle, from chains of the optimizer itself."""
    x, gamma, nu = np.array([0.4]), 0.3, 0.1
    found = local_entropy.monte_carlo(
        local_entropy.DOUBLE_WELL,
        x,
        gamma,
        nu,
        lr=0.02,
        inner_steps=800,
        burn_in=200,
        chains=4000,
        integrator="leimkuhler_matthews",
        seed=3,
    )
    why = "sampling error; bias of this integrator O(lr^2)"
    return [
        scored(
            "4.20",
            "mean of (x - ybar) / gamma",
            float(found.gradient.ravel()[0]),
            -1.06368056393,
            float(found.gradient_error.ravel()[0]),
            why,
        ),
        scored(
            "4.20",
            "mean of F'(y), the other estimate",
            float(found.mean_gradient.ravel()[0]),
            -1.06368056393,
            float(found.mean_gradient_error.ravel()[0]),
            why,
        ),
    ]
