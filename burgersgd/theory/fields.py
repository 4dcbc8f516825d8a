"""Velocity fields in d dimensions: Burgers' equation (3.1), its divergence form (4.5) and the curl (4.6).

At points ``[points, d]`` a field is given by its values w and its Jacobian ``[points, d, d]``, J[i, j] = d_j w_i.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def burgers_residual(w: Array, w_t: Array, jacobian: Array, laplacian: Array, nu: float) -> Array:
    """Return w_t + (w . grad) w - nu Lap w, as w. Implements Eq. (3.1)."""
    return w_t + np.einsum("pij,pj->pi", jacobian, w) - nu * laplacian


def divergence_residual(w: Array, w_t: Array, jacobian: Array, grad_div: Array, nu: float) -> Array:
    """Return w_t + grad(|w|^2 / 2 - nu div w), as w: equals burgers_residual if curl w = 0. Implements Eq. (4.5)."""
    return w_t + np.einsum("pij,pi->pj", jacobian, w) - nu * grad_div


def wedge(u: Array, v: Array) -> Array:
    """Return u ^ v = u v' - v u', ``[d, d]``, of two vectors. Implements Eq. (4.7)."""
    return np.outer(u, v) - np.outer(v, u)


def curl(jacobian: Array) -> Array:
    """Return the sum over i < j of (d_i w_j - d_j w_i) e_i ^ e_j, as the Jacobian. Implements Eq. (4.6)."""
    d = jacobian.shape[-1]
    basis, total = np.eye(d), np.zeros_like(jacobian)
    for i in range(d):
        for j in range(i + 1, d):
            component = jacobian[:, j, i] - jacobian[:, i, j]
            total += component[:, None, None] * wedge(basis[i], basis[j])
    return total
