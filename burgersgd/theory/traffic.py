"""Highway traffic as the viscous Burgers' equation: section 3 of the paper, with the sign of (3.12) corrected.

The density rho (cars per length) lies in [0, rho_max]; cars move at u = u_max (1 - rho / rho_max) (Greenshields). In
the characteristic speed w = Q'(rho) = u_max (1 - 2 rho / rho_max) the conservation of cars with a diffusive flux is
Burgers' equation, w_t + w w_x = nu w_xx. Units are free: those of rho_max, u_max and of x and t must agree, and nu has
the units of u_max times length. Everything is one-dimensional; functions work elementwise on arrays of any shape, and
raise ValueError for nu < 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import cumulative_trapezoid

from burgersgd.theory import cole_hopf
from burgersgd.theory.checks import check_not_negative, check_positive, float_array
from burgersgd.theory.quadrature import Array

RED_LIGHT = (0.4, 1.0)
"""Densities left and right of a light at x = 0 that has just turned red, over rho_max: a shock moves backwards."""
GREEN_LIGHT = (1.0, 0.0)
"""The same when it turns green: a rarefaction fan spreads, with rho = rho_max / 2 at the light at all times."""
JAM_PART = 0.25
"""Length of the jam of Greenshields.jam_density as a fraction of the road's length."""


@dataclass(frozen=True)
class Greenshields:
    """A road on which the speed of cars falls linearly with their density. Raises ValueError unless both are > 0."""

    rho_max: float = 1.0
    u_max: float = 1.0

    def __post_init__(self) -> None:
        check_positive(rho_max=self.rho_max, u_max=self.u_max)

    # ----------------------------------------------------------------------------------------- the model (3.2)-(3.13)

    def car_speed(self, rho: ArrayLike) -> Array:
        """Return the speed of the cars, u = u_max (1 - rho / rho_max). Implements Eq. (3.8)."""
        return self.u_max * (1 - float_array(rho) / self.rho_max)  # (3.8)

    def flux(self, rho: ArrayLike) -> Array:
        """Return the flux Q(rho) = rho u(rho), cars per unit of time: a parabola with its top at rho_max / 2.

        Implements Eq. (3.4). Implements Eq. (3.5).
        """
        return float_array(rho) * self.car_speed(rho)  # (3.5)

    def viscous_flux(self, rho: ArrayLike, rho_x: ArrayLike, nu: float) -> Array:
        """Return q = Q(rho) - nu rho_x: drivers look ahead and slow down where the density rises.

        Implements Eq. (3.7).
        """
        check_not_negative(nu=nu)
        return self.flux(rho) - nu * float_array(rho_x)  # (3.7)

    def characteristic_speed(self, rho: ArrayLike) -> Array:
        """Return w = Q'(rho) = u_max (1 - 2 rho / rho_max), the speed at which a small change of density travels.

        It lies between -u_max (jam) and u_max (empty road). Implements Eq. (3.9). Implements Eq. (3.11).
        """
        return self.u_max * (1 - 2 * float_array(rho) / self.rho_max)  # (3.11)

    def density(self, w: ArrayLike) -> Array:
        """Return rho = (rho_max / 2) (1 - w / u_max), the density whose characteristic speed is w.

        Implements Eq. (3.12), with an error of the paper corrected: it prints (rho_max / (2 u_max)) (1 - w), which is
        right only for u_max = 1.
        """
        return self.rho_max / 2 * (1 - float_array(w) / self.u_max)  # (3.12)

    def density_derivative(self, w_derivative: ArrayLike) -> Array:
        """Return rho_t, rho_x or rho_xx given w_t, w_x or w_xx: each is multiplied by -rho_max / (2 u_max).

        Implements Eq. (3.12), with the sign of the Laplacian corrected: the paper prints + for Lap rho, which would
        turn (3.13) into the ill-posed w_t + w w_x = -nu w_xx.
        """
        return -self.rho_max / (2 * self.u_max) * float_array(w_derivative)

    def density_residual(
        self, rho: ArrayLike, rho_t: ArrayLike, rho_x: ArrayLike, rho_xx: ArrayLike, nu: float
    ) -> Array:
        """Return rho_t + Q'(rho) rho_x - nu rho_xx, zero for a solution of the viscous model; nu = 0 gives (3.6).

        Implements Eq. (3.3). Implements Eq. (3.6). Implements Eq. (3.10).
        """
        check_not_negative(nu=nu)
        speed = self.characteristic_speed(rho)
        return float_array(rho_t) + speed * float_array(rho_x) - nu * float_array(rho_xx)  # (3.10)

    def shock_speed(self, rho_left: float, rho_right: float) -> float:
        """Return the speed [Q] / [rho] = u_max (1 - (rho_left + rho_right) / rho_max) of a jump (Rankine-Hugoniot).

        For a red light (rho_right = rho_max) it is -u_max rho_left / rho_max: the queue grows backwards.
        """
        return self.u_max * (1 - (rho_left + rho_right) / self.rho_max)

    def godunov(self, left: Array, right: Array) -> Array:
        """Return the flux through faces between the densities left and right, min(demand(left), supply(right)).

        Implements Eq. (3.10), in the solver burgers.solve.
        """
        critical = self.rho_max / 2  # the density at which Q is largest
        # demand and supply are the fluxes that can leave the cell on the left and enter the cell on the right
        demand, supply = (
            rho * (rho * (-self.u_max / self.rho_max) + self.u_max)
            for rho in (np.minimum(left, critical), np.maximum(right, critical))
        )
        return np.minimum(demand, supply)

    # ------------------------------------------------------------------------------------------------------ scenarios

    def riemann_solution(self, x: ArrayLike, t: float, rho_left: float, rho_right: float, nu: float) -> Array:
        """Return the exact density at time t >= 0 that starts as rho_left for x < 0 and rho_right for x > 0.

        It is a shock or a fan; for nu = 0 it is the entropy solution. Raises ValueError unless t >= 0 and both
        densities lie in [0, rho_max].
        """
        for name, rho in (("rho_left", rho_left), ("rho_right", rho_right)):
            if not 0 <= rho <= self.rho_max:
                raise ValueError(f"{name}={rho:g}: must be >= 0 and <= rho_max={self.rho_max:g}")
        w_left, w_right = (float(self.characteristic_speed(rho)) for rho in (rho_left, rho_right))
        return self.density(cole_hopf.riemann(x, t, nu, w_left, w_right))

    def jam_density(self, x: ArrayLike, length: float) -> Array:
        """Return the density of a jam in light traffic, in the middle of a road [-length / 2, length / 2].

        It has a shock at its tail and a fan at its head until the two meet. Raises ValueError unless length > 0.
        """
        check_positive(length=length)
        return self.rho_max * np.where(np.abs(float_array(x)) < JAM_PART * length / 2, 0.9, 0.2)

    def ring_density(self, x: ArrayLike, length: float) -> Array:
        """Return a density with one smooth bump, around x = 0, on a ring road; it steepens into a shock and decays.

        Raises ValueError unless length > 0.
        """
        check_positive(length=length)
        return self.rho_max * (0.4 + 0.25 * np.cos(2 * math.pi * float_array(x) / length))

    def cumulative_count(self, rho: Array, dx: float, times: Array, nu: float, *, periodic: bool) -> Array:
        """Return N, ``[times, cells + 1]``: the cars between the left end and each face, minus those that came in.

        rho is ``[times, cells]``. The paths of cars are the level sets of N, because N_x = rho and N_t = -q: car k
        drives along N(X(t), t) = k at the speed q / rho. The flux through the left end is integrated by the
        trapezoidal rule over times. Implements Eq. (3.2). Implements Eq. (3.3). Raises ValueError unless dx > 0.
        """
        check_positive(dx=dx)
        first, before = rho[:, 0], rho[:, -1] if periodic else rho[:, 0]
        q = self.viscous_flux((first + before) / 2, (first - before) / dx, nu)
        came_in = cumulative_trapezoid(q, times, initial=0)
        count = np.zeros((rho.shape[0], rho.shape[1] + 1))
        np.cumsum(rho, axis=1, out=count[:, 1:])
        return count * dx - came_in[:, None]


def burgers_residual(w: ArrayLike, w_t: ArrayLike, w_x: ArrayLike, w_xx: ArrayLike, nu: float) -> Array:
    """Return w_t + w w_x - nu w_xx, zero for a solution of Burgers' equation.

    Implements Eq. (3.1). Implements Eq. (3.13).
    """
    check_not_negative(nu=nu)
    return float_array(w_t) + float_array(w) * float_array(w_x) - nu * float_array(w_xx)  # (3.13)
