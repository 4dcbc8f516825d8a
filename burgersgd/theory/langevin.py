"""Langevin dynamics (2.14)-(2.16): integrators, invariant laws, the temperature of mini-batches.

dx = -grad F(x) dt + sqrt(2 T) dW has the invariant law exp(-F / T) / Z. The paper's T in (2.15) is nu; the fast point
of the local entropy has T = 2 nu. All paths are computed by the update rules that train networks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy import ndarray
from numpy.typing import ArrayLike

from burgersgd.datasets.batches import Batches
from burgersgd.optimizers.langevin import Langevin
from burgersgd.optimizers.sgd import Sgd
from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array
from burgersgd.theory.local_entropy import Integrator, Loss
from burgersgd.theory.paths import Noise, averaged, end_of_walk, normals

# ------------------------------------------------------------------------------------------------------------- paths


def langevin_paths(
    loss: Loss,
    start: ArrayLike,
    temperature: ArrayLike,
    lr: float,
    steps: int,
    *,
    integrator: Integrator = "em",
    seed: int = 0,
    noise: Noise | None = None,
) -> ndarray:
    """Return x ``[paths, d]`` after `steps` steps of dx = -grad F dt + sqrt(2 T) dW from start ``[paths, d]``.

    The steps are those of the rule optimizers.langevin.Langevin, with the noise of Euler-Maruyama or of Leimkuhler and
    Matthews. T is a float, or one number per step (simulated annealing). noise, if given, replaces the stream of seed.
    Implements Eq. (2.15), with T = nu. Implements Eq. (5.3), (5.4): the equation and its integral.
    Implements Eq. (5.17): the times are k * lr for k = 0, ..., steps. Raises ValueError unless T is finite and >= 0,
    one float or `steps` of them, lr finite and > 0, and start finite.
    """
    temperatures = float_array(temperature)
    check_positive(lr=lr)
    check_finite(start=start, temperature=temperature)
    if temperatures.shape not in ((), (steps,)) or temperatures.min() < 0:
        raise ValueError(f"temperature: must be one number >= 0 or {steps} of them")
    begin = float_array(start)
    noise = normals(seed, *begin.shape) if noise is None else noise
    noise = averaged(noise) if integrator == "leimkuhler_matthews" else noise
    state = end_of_walk(Langevin(), begin, loss.gradient, steps, noise=noise, lr=lr, temperature=temperatures)
    return state.x.numpy()


# ---------------------------------------------------------------------------------------------- mini-batch noise


def minibatch_temperature(trace: float, lr: float, d: int) -> float:
    """Return T = lr tr S / (2 d): the temperature of SGD whose gradients have the covariance S. Implements Eq. (2.14).

    With nu_mb = tr S / 2 of (2.14), T = lr nu_mb / d, not nu_mb. In the local entropy, where T = 2 nu, this noise adds
    lr tr S / (4 d) to the viscosity. Raises ValueError unless trace is finite and >= 0, lr finite and > 0 and d >= 1.
    """
    check_not_negative(trace=trace)
    check_positive(lr=lr, d=d)
    return lr * trace / (2 * d)


def minibatch_paths(
    *,
    curvature: float = 2.0,
    d: int = 3,
    trace: float = 1.0,
    lr: float = 0.05,
    batch_size: int = 8,
    samples: int = 64,
    steps: int = 200,
    paths: int = 4000,
    seed: int = 0,
) -> ndarray:
    """Return x ``[paths, d]`` of mini-batch SGD from 0 on F = mean_i a |x - c_i|^2 / 2 in R^d.

    The samples c_i are such that the covariance S of a mini-batch gradient is (trace / d) I. The steps are those of
    the rule optimizers.sgd.Sgd, and the batches those of datasets.batches.Batches, drawn uniformly with replacement.
    Raises ValueError unless all numbers are finite and > 0, lr * curvature < 2 and samples > d.
    """
    check_positive(curvature=curvature, d=d, trace=trace, lr=lr, batch_size=batch_size, steps=steps, paths=paths)
    if lr * curvature >= 2:
        raise ValueError(f"lr={lr:g}: lr * curvature = {lr * curvature:g}, must be < 2")
    if samples <= d:
        raise ValueError(f"samples={samples}: must be more than d={d}, for noise in every direction")
    cloud = normals(seed, samples, d)(0).numpy()
    white = np.linalg.qr(cloud - cloud.mean(0))[0] * math.sqrt(samples)  # mean 0, covariance I
    centers = white * math.sqrt(trace * batch_size / d) / curvature
    batches = Batches(samples, batch_size, torch.arange(paths) + (seed << 32), with_replacement=True)

    drawn = (batches.indices(k, 1)[0].numpy() for k in range(steps))
    return end_of_walk(
        Sgd(), np.zeros((paths, d)), lambda x: curvature * (x - centers[next(drawn)].mean(1)), steps, lr=lr
    ).x.numpy()
