"""The checks of `burgersgd verify` for the Cole-Hopf transformation: (4.1)-(4.19)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.integrate import fixed_quad

from burgersgd.theory import cole_hopf, fields, local_entropy, traffic
from burgersgd.theory.quadrature import Array
from burgersgd.theory.verify_rows import (
    QUADRATURE,
    ROUNDING,
    STENCIL,
    Row,
    agrees,
    central,
    check,
    derivatives,
    largest,
    misprint,
)

NU, T = 0.1, 0.3  # t = gamma: the time of the equation is the width of the local entropy
POINTS = np.linspace(-1.4, 1.5, 30)
MIXTURE = (
    np.array([1.0, 0.6]),
    np.array([[0.0, 0.3], [1.0, -0.5]]),
    np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]]),
)
"""Weights, means and covariances of a mixture of two Gaussians in the plane."""

well, well_slope = local_entropy.DOUBLE_WELL.value, local_entropy.DOUBLE_WELL.gradient
"""The double well (y^2 - 1)^2, the loss F of most rows, and F'."""


def well_integral(y: Array) -> Array:
    """Return the integral of the double well from 0 to y, which the paper prints in place of the double well."""
    return y**5 / 5 - 2 * y**3 / 3 + y


def integral(f: Callable[[Array], Array], left: float, right: float) -> float:
    """Return the integral of f by 200 Gauss-Legendre nodes."""
    return float(fixed_quad(f, left, right, n=200)[0])


@check("cole_hopf")
def exact_solutions() -> Iterator[Row]:
    """The classical solutions at points computed independently, and two of them by quadrature."""
    x = np.linspace(-1, 1, 21)
    values = [
        ("riemann", "shock (x = 0.3, t = 0.8)", cole_hopf.riemann(0.3, 0.8, 0.1, 1.2, -0.3), 0.6308433687916),
        ("riemann", "fan (x = 0.3, t = 0.8)", cole_hopf.riemann(0.3, 0.8, 0.1, -0.7, 1.0), 0.3061119213350),
        ("n_wave", "N-wave (x = 0.5, t = 2, a = 3)", cole_hopf.n_wave(0.5, 2.0, 0.02, 3.0), 0.0510695252527),
        ("hump", "hump (x = 0.5, t = 1, mass 1)", cole_hopf.hump(0.5, 1.0, 0.1, 1.0), 0.6892130172846),
        ("sine", "sine wave (x = 0.25, t = 0.5)", cole_hopf.sine(0.25, 0.5, 0.05), -0.7460565282439),
    ]
    why = "13 digits were written down"
    for function, what, value, known in values:
        yield agrees("3.13", f"cole_hopf.{function}", what, value, known, 1e-12, why)
    jump = cole_hopf.w_from_velocity(
        x, 0.5, 0.05, lambda y: np.where(y < 0, 1.2, -0.3), max_speed=1.2, breakpoints=[0.0]
    )
    difference, of = jump - cole_hopf.riemann(x, 0.5, 0.05, 1.2, -0.3), "cole_hopf.w_from_velocity"
    yield agrees("4.16", of, "Riemann's problem: quadrature - closed form", difference, 0, 1e-10, QUADRATURE)


@check("cole_hopf")
def hamilton_jacobi() -> Iterator[Row]:
    """-2 nu log psi solves (4.4), and its slope Burgers' equation; with the printed sign they do not."""
    f = derivatives(lambda x, t: cole_hopf.phi(x, t, NU, well), POINTS, T, 2e-3)
    residuals = [sign * f.t + f.x**2 / 2 - NU * sign * f.xx for sign in (1, -1)]
    d = derivatives(lambda x, t: cole_hopf.w(x, t, NU, well), POINTS, T, 2e-3)
    in_w = traffic.burgers_residual(*d, NU)
    rise, h = float(cole_hopf.phi(0.0, T, NU, well)) - 1, 1e-4

    def rate(t: float) -> float:  # phi_t at x = 0 from Burgers' side, nu w_x - w^2 / 2
        w = cole_hopf.w(np.array([-h, 0, h]), t, NU, well, slope=well_slope)
        return float(NU * (w[2] - w[0]) / (2 * h) - w[1] ** 2 / 2)

    by_flow, of_w = float(fixed_quad(np.vectorize(rate), 0, T, n=24)[0]), "cole_hopf.w"
    what, why = "phi(0, 0.3) - F(0); printed phi(0, t) = 0 keeps it where it is", "phi_t from w by differences"
    sign = "residual phi_t + phi_x^2 / 2 - nu phi_xx; printed sign + 2 nu log"
    yield misprint("4.1, 4.4", "cole_hopf.phi", sign, residuals, 0, 1e-5, STENCIL)
    yield agrees("4.16", of_w, "residual w_t + w w_x - nu w_xx", in_w, 0, 1e-4, STENCIL)
    yield misprint("4.15", f"cole_hopf.phi, {of_w}", what, (rise, 0.0), by_flow, 1e-5, why)


@check("cole_hopf")
def transformation() -> Iterator[Row]:
    """(4.9)-(4.11): the transformation turns Hamilton-Jacobi into the heat equation, for any psi."""
    rng = np.random.default_rng(1)
    psi = rng.uniform(0.5, 2, 50)
    psi_t, psi_x, psi_xx = rng.normal(size=(3, 50))
    phi_t, phi_x, phi_xx = cole_hopf.phi_derivatives(psi, psi_t, psi_x, psi_xx, NU)
    left = phi_t + phi_x**2 / 2 - NU * phi_xx + 2 * NU / psi * cole_hopf.heat_residual(psi_t, psi_xx, NU)
    back = cole_hopf.psi_from_phi(cole_hopf.phi_from_psi(psi, NU), NU)
    d = derivatives(lambda x, t: np.exp(cole_hopf.log_psi(x, t, NU, well)), POINTS, T, 2e-3)
    heat = largest(cole_hopf.heat_residual(d.t, d.xx, NU)) / largest(d.t)
    grad = largest(cole_hopf.grad_psi(POINTS, T, NU, well) - d.x) / largest(d.x)
    slope = cole_hopf.phi_derivatives(*d, NU)[1] - cole_hopf.w(POINTS, T, NU, well)
    start = cole_hopf.psi_from_phi(well(POINTS), NU)
    start_x = -well_slope(POINTS) / (2 * NU) * start
    by_differences = central(lambda h: cole_hopf.psi_from_phi(well(POINTS + h), NU), 1e-3)
    wrong = -well(POINTS) / (2 * NU) * np.exp(-well_integral(POINTS) / (2 * NU))
    initial = [v - start_x for v in (by_differences, wrong)]
    of_phi, of_heat = "cole_hopf.phi_derivatives", "cole_hopf.heat_residual"
    of_log, of_pair = "cole_hopf.log_psi", "cole_hopf.phi_from_psi, cole_hopf.psi_from_phi"
    what = "psi_x(x, 0) + F' psi / 2 nu; printed: the integral of F for F"
    yield agrees("4.9", of_pair, "psi -> phi -> psi", back - psi, 0, 1e-12, ROUNDING)
    yield agrees("4.10", f"{of_phi}, {of_heat}", "(4.4) + (2 nu / psi) (4.11), any psi", left, 0, 1e-12, ROUNDING)
    yield agrees("4.11", f"{of_heat}, {of_log}", "residual psi_t - nu psi_xx over max |psi_t|", heat, 0, 1e-5, STENCIL)
    yield agrees("4.19", f"cole_hopf.grad_psi, {of_log}", "psi_x - differences, relative", grad, 0, 1e-6, STENCIL)
    yield agrees("4.12", f"{of_phi}, cole_hopf.w", "-2 nu psi_x / psi = w, at t > 0 as well", slope, 0, 1e-6, STENCIL)
    yield misprint("4.13", "cole_hopf.psi_from_phi", what, initial, 0, 1e-6, STENCIL)


@check("cole_hopf")
def heat_kernel() -> Iterator[Row]:
    """(4.2), (4.14), (4.17): convolution with a kernel of mass 1 in every dimension; printed for d = 1 only."""
    x = np.array([-0.8, 0.4])
    direct = [
        integral(
            lambda y, at=at: cole_hopf.heat_kernel(at - y, T, NU) * cole_hopf.psi_from_phi(well(y), NU), at - 4, at + 4
        )
        for at in x
    ]
    relative = np.exp(cole_hopf.log_psi(x, T, NU, well)) / direct - 1
    grid, step = np.linspace(-6, 6, 6001, retstep=True)
    psi = np.convolve(np.exp(-well(grid) / (2 * NU)), cole_hopf.heat_kernel(grid, T, NU), "same") * step
    convolved = np.log(psi[3000:4001:200]) - cole_hopf.log_psi(grid[3000:4001:200], T, NU, well)
    variance = 2 * NU * T
    mass = integral(lambda r: cole_hopf.heat_kernel(r, T, NU, d=2) * 2 * math.pi * r, 0, 12 * math.sqrt(variance))
    printed = mass * math.sqrt(2 * math.pi * variance)  # one factor (4 pi nu t)^(-1/2); d = 2 needs two
    y = np.linspace(-2, 2, 9)
    pull = (0.4 - y) ** 2 / (2 * T)
    gaps = [v - (well(y) + pull) for v in (local_entropy.coupled(well, 0.4, T)(y), well_integral(y) + pull)]
    of, of_psi = "cole_hopf.heat_kernel", "cole_hopf.log_psi"
    what = "mass of the kernel in 2-D; printed exponent -1/2"
    in_F = "G = F(y) + (x - y)^2 / 2t; printed: the integral of F"
    yield agrees("4.14, 4.17", f"{of_psi}, {of}", "psi / direct quadrature - 1", relative, 0, 1e-11, QUADRATURE)
    yield agrees("4.2", f"{of_psi}, {of}", "log of a discrete convolution - log psi", convolved, 0, 1e-9, QUADRATURE)
    yield misprint("4.14", of, what, (mass, printed), 1.0, 1e-10, QUADRATURE)
    yield misprint("4.18", "local_entropy.coupled", in_F, gaps, 0, 1e-12, ROUNDING)


@check("cole_hopf")
def initial_data() -> Iterator[Row]:
    """The initial data are w = F', not w = F, and the integral of (4.8) begins at 0, not at -infinity."""
    t = 1e-4
    start = [cole_hopf.w(POINTS, t, NU, well, slope=well_slope) - f(POINTS) for f in (well_slope, well)]
    truth = local_entropy.local_entropy(well, POINTS, T, NU).gradient
    data = [
        cole_hopf.w_from_velocity(POINTS, T, NU, lambda y, f=f: f(np.clip(y, -2.5, 2.5)), max_speed=53.0) - truth
        for f in (well_slope, well)
    ]

    def phi(x: float) -> float:
        return float(cole_hopf.phi(x, T, NU, well))

    path = cole_hopf.antiderivative(lambda z: cole_hopf.w(z, T, NU, well), -3.0, 1.0, panels=8)
    from_0 = float(path(np.array(0.9))) - (phi(0.9) - phi(0.0))
    moved = float(path(np.array(-2.0)) - path(np.array(-3.0)))
    of = "cole_hopf.w"
    what = "w(., t) - F' as t -> 0 (t = 1e-4); printed F for F'"
    exponent = "exponent F(y), against grad F_gamma; printed: the integral of F"
    line = "integral of w from 0 = phi(x) - phi(0); printed: from -R, R: 2 -> 3"
    of_data, of_line = "cole_hopf.w_from_velocity, cole_hopf.antiderivative", "cole_hopf.antiderivative, cole_hopf.phi"
    why = "first order: t |nu F''' - F' F''| < 180 t on these points"
    yield misprint("4.3, 4.4", of, what, start, 0, 180 * t, why)
    yield misprint("4.12, 4.16", of_data, exponent, data, 0, 1e-9, QUADRATURE)
    yield misprint("4.8", f"{of_line}, {of}", line, (from_0, moved), 0, 1e-9, "must not depend on where it begins")


@check("cole_hopf")
def vector_fields() -> Iterator[Row]:
    """(4.5) needs a field without curl: grad F_gamma of a mixture in the plane, and a decaying rotation."""
    x, h, nu, t = np.random.default_rng(2).normal(size=(20, 2)), 1e-2, 0.2, 0.5

    def w(x: Array, t: float = t) -> Array:
        return local_entropy.gaussian_mixture(x, *MIXTURE, t, nu).gradient

    def jacobian(x: Array) -> Array:
        return np.stack([central(lambda k, e=e: w(x + k * e), h) for e in np.eye(2)], axis=2)

    gradient_field = (w(x), central(lambda k: w(x, t + k), h), jacobian(x))
    second = np.stack([central(lambda k, e=e: jacobian(x + k * e), h) for e in np.eye(2)], axis=3)  # d_k d_j w_i
    still = fields.divergence_residual(*gradient_field, np.einsum("piij->pj", second), nu)
    spin = np.array([[0.0, -1.0], [1.0, 0.0]])  # w = B(t) x, B = B0 (1 + t B0)^-1, has B_t = -B B
    B = (spin @ np.linalg.inv(np.eye(2) + t * spin)).astype(float)
    rotation = (x @ B.T, -x @ (B @ B).T, np.tile(B, (len(x), 1, 1)))
    turning = fields.divergence_residual(*rotation, 0 * x, nu)
    both = ((rotation, 0 * x), (gradient_field, np.einsum("pijj->pi", second)))  # with their Laplacians
    advected = np.stack([fields.burgers_residual(*field, laplacian, nu) for field, laplacian in both])
    spun = float(fields.curl(np.broadcast_to(spin, (1, 2, 2)))[0, 0, 1])
    form = "residual of grad(|w|^2 / 2 - nu div w): field without curl; any field"
    of, of_curl, mixture = "fields.divergence_residual", "fields.curl, fields.wedge", "local_entropy.gaussian_mixture"
    yield agrees("3.1", f"fields.burgers_residual, {mixture}", "residual in the plane", advected, 0, 1e-6, STENCIL)
    yield misprint("4.5", f"{of}, {mixture}", form, (still, turning), 0, 1e-6, STENCIL)
    yield agrees("4.6, 4.7", of_curl, "curl of (-y, x), its component 1, 2", spun, 2, 1e-12, ROUNDING)
    yield agrees("4.6", "fields.curl", "curl of grad F_gamma in the plane", fields.curl(jacobian(x)), 0, 1e-6, STENCIL)
