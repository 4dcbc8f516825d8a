"""The local entropy F_gamma of a loss: by quadrature, in closed form, for nu -> 0, and as estimated in training.

F_gamma = -2 nu log(G_(2 nu gamma) * exp(-F / 2 nu)) solves the viscous Hamilton-Jacobi equation (4.4) at time gamma;
its gradient, the Burgers velocity w, is (x - E y) / gamma = E grad F(y) under rho_1(y; x) = exp(-G / 2 nu) / Z with
G(x, y; gamma) = F(y) + |x - y|^2 / (2 gamma).

Losses and gradients are numpy functions. In one dimension points x are a float or ``[points]`` and losses work element
by element; in d dimensions x is ``[points, d]``, losses map ``[..., d]`` to ``[...]`` and gradients keep the shape.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import ive, logsumexp

from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array
from burgersgd.theory.gibbs import GibbsLaw, gibbs_law
from burgersgd.theory.paths import end_of_walk
from burgersgd.theory.quadrature import Function, find_mass, integrate, scan

Integrator = Literal["em", "leimkuhler_matthews"]


@dataclass(frozen=True)
class Loss:
    """A loss F and its gradient."""

    value: Function
    gradient: Function


DOUBLE_WELL = Loss(lambda y: (y**2 - 1) ** 2, lambda y: 4 * y * (y**2 - 1))
RIPPLE = Loss(lambda y: y**2 / 2 + 0.45 * np.cos(2 * y), lambda y: y - 0.9 * np.sin(2 * y))


def rastrigin_loss(curvature: float, amplitude: float, frequency: float) -> Loss:
    """Return a y^2 / 2 + A (1 - cos(omega y)), one-dimensional."""
    return Loss(
        lambda y: curvature * y**2 / 2 + amplitude * (1 - np.cos(frequency * y)),
        lambda y: curvature * y + amplitude * frequency * np.sin(frequency * y),
    )


@dataclass(frozen=True)
class LocalEntropyAt:
    """F_gamma and the law of the fast point y at each of the points x."""

    x: ndarray  # [points] or [] in 1-D, otherwise [points, d]
    gamma: float
    nu: float
    value: ndarray  # F_gamma(x), [points]
    mean: ndarray  # E y, as x
    covariance: ndarray  # of y: as x in 1-D, otherwise [points, d, d]
    mean_gradient: ndarray | None = None  # E grad F(y), as x: the second form of (4.20), if the gradient was given

    @property
    def gradient(self) -> ndarray:
        """Grad F_gamma(x) = E (x - y) / gamma, as x. Implements Eq. (4.20), whose first form is printed with - sign."""
        return (self.x - self.mean) / self.gamma

    @property
    def hessian(self) -> ndarray:
        """I / gamma - Cov(y) / (2 nu gamma^2), as covariance: at most I / gamma."""
        one = 1.0 if self.covariance.shape == self.x.shape else np.eye(self.x.shape[-1])
        return one / self.gamma - self.covariance / (2 * self.nu * self.gamma**2)


# ------------------------------------------------------------------------------------------------------- quadrature


def coupled(loss: Function, x: float | ndarray, gamma: float) -> Function:
    """Return y -> G(x, y; gamma) = F(y) + (x - y)^2 / (2 gamma), with y broadcast against x.

    Implements Eq. (4.18), with F(y) for its integral and t = gamma.
    """
    return lambda y: loss(y) + (y - x) ** 2 / (2 * gamma)


def fast_law(loss: Function, x: float, gamma: float, nu: float) -> GibbsLaw:
    """Return rho_1(y; x) = exp(-G / (2 nu)) / Z at one x in one dimension.

    Implements Eq. (4.21), with F the loss and t = gamma. Implements Eq. (4.22), with + signs. Raises ValueError unless
    gamma and nu are finite and > 0 and x is finite, and as gibbs_law does.
    """
    check_positive(gamma=gamma, nu=nu)
    check_finite(x=x)
    return gibbs_law(coupled(loss, x, gamma), 2 * nu, around=x)


def local_entropy(loss: Loss | Function, x: ArrayLike, gamma: float, nu: float) -> LocalEntropyAt:
    """Return F_gamma, its gradient and its Hessian at x, by quadrature in one or two dimensions.

    x is a float, ``[points]`` or ``[points, d]``; E grad F(y) is computed if a Loss is given. Implements Eq. (4.1),
    with the sign and the normalisation corrected. Raises ValueError as fast_law does.
    """
    check_positive(gamma=gamma, nu=nu)
    check_finite(x=x)
    at = float_array(x)
    centers = at.reshape(-1, 1) if at.ndim < 2 else at
    n, d = centers.shape
    value, gradient = (loss.value, loss.gradient) if isinstance(loss, Loss) else (loss, None)

    def points(rows: ndarray, z: ndarray) -> ndarray:
        y = centers[rows, None] + z
        return y[..., 0] if at.ndim < 2 else y

    def exponent(rows: ndarray, z: ndarray) -> ndarray:
        return -(value(points(rows, z)) + (z**2).sum(-1) / (2 * gamma)) / (2 * nu)

    def moments(rows: ndarray, z: ndarray) -> ndarray:  # of z about the middle of its box, to avoid cancellation
        off = z - middle[rows, None]
        parts = [off, (off[..., None] * off[..., None, :]).reshape(*z.shape[:2], -1)]
        if gradient is not None:
            parts.append(gradient(points(rows, z)).reshape(z.shape))
        return np.concatenate(parts, axis=-1)

    low, high = find_mass(exponent, centers)
    middle = (low + high) / 2
    log_z, means = integrate(exponent, moments, low, high)
    first, second = means[:, :d], means[:, d : d + d * d].reshape(n, d, d)
    covariance = second - first[:, :, None] * first[:, None]
    return LocalEntropyAt(
        x=at,
        gamma=gamma,
        nu=nu,
        value=-2 * nu * (log_z - d / 2 * math.log(4 * math.pi * nu * gamma)).reshape(at.shape[:1]),
        mean=(centers + middle + first).reshape(at.shape),
        covariance=covariance.reshape(at.shape if at.ndim < 2 else (n, d, d)),
        mean_gradient=None if gradient is None else means[:, d + d * d :].reshape(at.shape),
    )


# ----------------------------------------------------------------------------------------------------- closed forms


def quadratic(x: ArrayLike, curvature: ArrayLike, center: ArrayLike, gamma: float, nu: float) -> LocalEntropyAt:
    """Return the local entropy of (y - c)' A (y - c) / 2 at x ``[points, d]``; A is ``[d, d]``, c ``[d]``.

    y has the law N(m, 2 nu gamma P) with P = (I + gamma A)^-1 and m = P (x + gamma A c). Raises ValueError unless gamma
    and nu are finite and > 0, all arrays are finite, and A is symmetric with I + gamma A positive definite.
    """
    check_positive(gamma=gamma, nu=nu)
    check_finite(x=x, curvature=curvature, center=center)
    points, c = float_array(x), float_array(center)
    a, directions = _symmetric("curvature", float_array(curvature))
    if gamma * a.min() <= -1:
        raise ValueError(f"curvature: gamma * (smallest eigenvalue) = {gamma * a.min():g}, must be > -1")
    p = 1 / (1 + gamma * a)
    off = (points - c) @ directions  # in the eigenbasis
    covariance = 2 * nu * gamma * (directions * p) @ directions.T
    return LocalEntropyAt(
        x=points,
        gamma=gamma,
        nu=nu,
        value=(a * p * off**2).sum(-1) / 2 - nu * np.log(p).sum(),
        mean=c + (off * p) @ directions.T,
        covariance=np.broadcast_to(covariance, (*points.shape, len(a))),
    )


def gaussian_mixture_loss(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, nu: float) -> Function:
    """Return F with exp(-F / 2 nu) = sum_k c_k exp(-(y - m_k)' S_k^-1 (y - m_k) / 2); shapes as in gaussian_mixture."""
    log_c, m, S = np.log(float_array(weights)), float_array(means), float_array(covariances)
    precision = np.linalg.inv(S)

    def loss(y: ndarray) -> ndarray:
        off = y[..., None, :] - m
        return -2 * nu * logsumexp(log_c - np.einsum("...ki,kij,...kj->...k", off, precision, off) / 2, axis=-1)

    return loss


def gaussian_mixture(
    x: ArrayLike, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, gamma: float, nu: float
) -> LocalEntropyAt:
    """Return the local entropy of gaussian_mixture_loss at x ``[points, d]``, in any dimension d.

    weights c_k > 0 ``[k]``, means m_k ``[k, d]``, covariances S_k ``[k, d, d]``: y is a Gaussian mixture, too. Raises
    ValueError unless gamma, nu and the weights are > 0, the covariances symmetric and positive definite, and all
    arrays finite.
    """
    check_positive(gamma=gamma, nu=nu)
    check_finite(x=x, weights=weights, means=means, covariances=covariances)
    points, c, m, S = float_array(x), float_array(weights), float_array(means), float_array(covariances)
    if c.min() <= 0:
        raise ValueError(f"weights: the smallest is {c.min():g}, all must be > 0")
    smallest = min(_symmetric("covariances", matrix)[0].min() for matrix in S)
    if smallest <= 0:
        raise ValueError(f"covariances: the smallest eigenvalue is {smallest:g}, all must be > 0")
    d = points.shape[1]
    wide = S + 2 * nu * gamma * np.eye(d)
    gain = S @ np.linalg.inv(wide)  # [k, d, d]
    off = points[:, None, :] - m  # [points, k, d]
    squared = np.einsum("pki,kij,pkj->pk", off, np.linalg.inv(wide), off)
    log_psi = np.log(c) + (np.linalg.slogdet(S)[1] - np.linalg.slogdet(wide)[1] - squared) / 2
    total = np.asarray(logsumexp(log_psi, axis=1))
    share = np.exp(log_psi - total[:, None])  # posterior weights [points, k]
    means_y = m + np.einsum("kij,pkj->pki", gain, off)
    mean = np.einsum("pk,pki->pi", share, means_y)
    spread = means_y - mean[:, None]
    within = np.einsum("pk,kij->pij", share, 2 * nu * gamma * gain)  # S - S wide^-1 S = gain (2 nu gamma)
    between = np.einsum("pk,pki,pkj->pij", share, spread, spread)
    return LocalEntropyAt(points, gamma, nu, value=-2 * nu * total, mean=mean, covariance=within + between)


def rastrigin(
    x: ArrayLike, curvature: float, amplitude: float, frequency: float, gamma: float, nu: float
) -> LocalEntropyAt:
    """Return the local entropy of a y^2 / 2 + A (1 - cos(omega y)) at x, a float or ``[points]``, by its Bessel series.

    Raises ValueError unless gamma, nu and the frequency are finite
    and > 0, the curvature > -1 / gamma, 0 <= A / (2 nu) <= 10 (the series cancels beyond 10), and x is finite.
    """
    check_positive(gamma=gamma, nu=nu, frequency=frequency)
    check_finite(x=x, curvature=curvature)
    z = amplitude / (2 * nu)
    if not 0 <= z <= 10:
        raise ValueError(f"amplitude={amplitude:g}: amplitude / (2 nu) = {z:g}, must lie in [0, 10]")
    if not gamma * curvature > -1:
        raise ValueError(f"curvature={curvature:g}: gamma * curvature must be > -1")
    points = float_array(x)
    p = 1 / (1 + curvature * gamma)
    k = np.arange(1, 200)
    terms = 2 * ive(k, z) * np.exp(-(k**2) * frequency**2 * nu * gamma * p)
    phase = k * frequency * (p * points[..., None])
    rate = k * frequency * p
    series = ive(0, z) + np.cos(phase) @ terms  # exp(-A (1 - cos) / 2 nu) averaged over N(m, 2 nu gamma p)
    first = -np.sin(phase) @ (rate * terms)  # and its derivatives in x
    second = -np.cos(phase) @ (rate**2 * terms)
    value = curvature * p * points**2 / 2 - nu * math.log(p) - 2 * nu * np.log(series)
    gradient = curvature * p * points - 2 * nu * first / series
    hessian = curvature * p - 2 * nu * (second / series - (first / series) ** 2)
    variance = 2 * nu * gamma * (1 - gamma * hessian)
    return LocalEntropyAt(points, gamma, nu, value, mean=points - gamma * gradient, covariance=variance)


def _symmetric(name: str, matrix: ndarray) -> tuple[ndarray, ndarray]:
    """Return eigenvalues and eigenvectors; raises ValueError unless the matrix is square and symmetric."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
        raise ValueError(f"{name}: must be symmetric [d, d] matrices, not of shape {matrix.shape}")
    eigenvalues, directions = np.linalg.eigh(matrix)
    return eigenvalues, directions


# -------------------------------------------------------------------------------------------------------- limit nu -> 0


class Moreau(NamedTuple):
    """The Hopf-Lax formula: the limits of F_gamma and E y for nu = 0."""

    value: ndarray  # min_y G(x, y; gamma), as x
    prox: ndarray  # the minimiser y, as x


def moreau(loss: Function, x: ArrayLike, gamma: float) -> Moreau:
    """Return the Moreau envelope min_y F(y) + (x - y)^2 / (2 gamma) and its minimiser at x, a float or ``[points]``.

    The best point of grids on all scales, see quadrature.find_mass, is refined to 1e-8 by a simplex search. Raises
    ValueError unless gamma is finite and > 0, x and F(x) are finite, and G rises far away from x.
    """
    check_positive(gamma=gamma)
    check_finite(x=x)
    at = float_array(x)
    centers = at.reshape(-1, 1)

    def exponent(rows: ndarray, z: ndarray) -> ndarray:
        return -coupled(loss, centers[rows], gamma)(centers[rows] + z[..., 0])

    z, rows = scan(*find_mass(exponent, centers, depth=0.0)), np.arange(len(centers))
    with np.errstate(over="ignore", invalid="ignore"):
        best = centers[:, 0] + z[rows, exponent(rows, z).argmax(1), 0]
    options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 1000}
    found = [
        minimize(lambda y, c=c: float(coupled(loss, c, gamma)(y)[0]), [y], method="Nelder-Mead", options=options)
        for c, y in zip(centers[:, 0], best, strict=True)
    ]
    return Moreau(np.reshape([f.fun for f in found], at.shape), np.reshape([f.x for f in found], at.shape))


# ------------------------------------------------------------------------------------------ the estimator of training


class MonteCarlo(NamedTuple):
    """Estimates of grad F_gamma by independent chains of the training rule, each ``[points, chains, d]``."""

    gradients: ndarray  # (x - mean of y) / gamma
    mean_gradients: ndarray  # the mean of grad F over the points at which it was evaluated


def monte_carlo(
    loss: Loss,
    x: ArrayLike,
    gamma: float,
    nu: float,
    *,
    lr: float = 0.02,
    inner_steps: int = 200,
    burn_in: int = 100,
    chains: int = 1000,
    integrator: Integrator = "em",
    seed: int = 0,
) -> MonteCarlo:
    """Return both forms of grad F_gamma(x) as one cycle of optimizers.local_entropy.LocalEntropy estimates them.

    x is ``[points]`` (1-D, results ``[points, 1]``) or ``[points, d]``, any d. Every chain starts at y = x, makes
    burn_in steps, and averages over inner_steps more. Raises ValueError unless gamma and lr are finite and > 0, nu is
    finite and >= 0, and x is finite.
    """
    check_positive(gamma=gamma, lr=lr)
    check_not_negative(nu=nu)
    check_finite(x=x)
    at = float_array(x)
    at = at.reshape(-1, 1) if at.ndim < 2 else at
    points, d = at.shape
    start = np.repeat(at, chains, axis=0)
    rule = LocalEntropy(inner_steps=inner_steps, burn_in=burn_in, integrator=integrator)
    total, evaluations = np.zeros_like(start), itertools.count()

    def gradient(y: ndarray) -> ndarray:
        grad = loss.gradient(y)
        if next(evaluations) >= burn_in:
            np.add(total, grad, out=total)
        return grad

    state = end_of_walk(rule, start, gradient, rule.gradients_per_cycle, seed=seed, lr=lr, nu=nu, gamma=gamma)
    return MonteCarlo(
        gradients=((start - state.mean.numpy()) / gamma).reshape(points, chains, d),
        mean_gradients=(total / inner_steps).reshape(points, chains, d),
    )
