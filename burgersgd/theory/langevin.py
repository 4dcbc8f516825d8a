"""Langevin dynamics (2.14)-(2.16): integrators, invariant laws, simulated annealing, the temperature of mini-batches.

dx = -grad F(x) dt + sqrt(2 T) dW has the invariant law exp(-F / T) / Z. The paper's T in (2.15) is nu; the fast point
of the local entropy has T = 2 nu. Every path is stepped by the update rules that train networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.stats import chisquare, kstest

from burgersgd import streams
from burgersgd.optimizers.langevin import Langevin
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array
from burgersgd.theory.gibbs import GibbsLaw, gibbs_law
from burgersgd.theory.local_entropy import DOUBLE_WELL, RIPPLE, Integrator, Loss
from burgersgd.theory.paths import UNUSED, always, averaged, last, normals, walk


@dataclass(frozen=True)
class Measured:
    """A measurement beside what it should be."""

    measured: float
    expected: float
    error: float  # standard error of measured

    @property
    def z(self) -> float:
        """Deviation in standard errors."""
        return (self.measured - self.expected) / self.error


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
) -> ndarray:
    """Return x ``[paths, d]`` after `steps` steps of dx = -grad F dt + sqrt(2 T) dW from start ``[paths, d]``.

    By the rule optimizers.langevin.Langevin, with the noise of Euler-Maruyama or of Leimkuhler and Matthews. The
    temperature T is a float, or one number per step (simulated annealing). Implements Eq. (2.15), with T = nu.
    Implements Eq. (5.3) and its integral, Implements Eq. (5.4), for a gradient drift. Raises ValueError unless T is
    finite and >= 0, one float or `steps` of them, lr finite and > 0, and start finite.
    """
    temperatures = float_array(temperature)
    check_positive(lr=lr)
    check_finite(start=start, temperature=temperature)
    if temperatures.shape not in ((), (steps,)) or temperatures.min() < 0:
        raise ValueError(f"temperature: must be one number >= 0 or {steps} of them")
    begin = float_array(start)
    noise = normals(seed, *begin.shape)
    noise = averaged(noise) if integrator == "leimkuhler_matthews" else noise
    hyper = {"lr": lr, "temperature": temperatures, "weight_decay": 0.0}
    return last(walk(Langevin(), hyper, begin, always(loss.gradient), steps, noise)).x.numpy()


def fast_paths(
    loss: Loss,
    x: ArrayLike,
    gamma: float,
    nu: float,
    *,
    lr: float = 0.05,
    steps: int = 400,
    paths: int = 4000,
    integrator: Integrator = "leimkuhler_matthews",
    seed: int = 0,
) -> ndarray:
    """Return the fast point y ``[paths, d]`` after `steps` steps from y = x, with x frozen (a float or ``[d]``).

    By the rule of training, optimizers.local_entropy.LocalEntropy. Raises ValueError unless gamma and lr are finite and
    > 0, nu is finite and >= 0, x is finite, and steps and paths are at least 1.
    """
    check_positive(gamma=gamma, lr=lr, steps=steps, paths=paths)
    check_not_negative(nu=nu)
    check_finite(x=x)
    start = np.tile(np.atleast_1d(float_array(x)), (paths, 1))
    rule = LocalEntropy(inner_steps=steps, averaging="last", integrator=integrator)
    hyper = UNUSED | {"lr": lr, "nu": nu, "gamma": gamma, "outer_step": 1.0, "ema_weight": 1.0}
    return last(walk(rule, hyper, start, always(loss.gradient), steps, normals(seed, *start.shape))).y.numpy()


# -------------------------------------------------------------------------------------------------- invariant laws


@dataclass(frozen=True)
class LawCheck:
    """A sample of independent points held against a one-dimensional law."""

    ks_pvalue: float  # Kolmogorov and Smirnov
    chi2_pvalue: float  # of the histogram with equally probable bins
    mean: Measured
    variance: Measured


def check_law(sample: ndarray, law: GibbsLaw, *, bins: int = 40) -> LawCheck:
    """Return how a sample (any shape, taken as one) compares with a law: distribution function, histogram, moments.

    The standard errors are those that the law predicts. Raises ValueError unless the sample is finite and has five
    points per bin.
    """
    values = np.ravel(sample)
    check_finite(sample=values)
    if len(values) < 5 * bins:
        raise ValueError(f"bins={bins}: must be at most a fifth of the {len(values)} points")
    n = len(values)
    uniform = np.histogram(law.cdf(values), bins=bins, range=(0, 1))[0]
    mean, variance = float(law.mean()), float(law.covariance())
    fourth = float(law.expectation(lambda y: (y - mean) ** 4))
    return LawCheck(
        ks_pvalue=float(kstest(values, law.cdf).pvalue),
        chi2_pvalue=float(chisquare(uniform).pvalue),
        mean=Measured(float(values.mean()), mean, math.sqrt(variance / n)),
        variance=Measured(float(values.var(ddof=1)), variance, math.sqrt((fourth - variance**2) / n)),
    )


def invariant_law_experiment(
    loss: Loss = DOUBLE_WELL,
    temperature: float = 0.4,
    *,
    lr: float = 0.02,
    steps: int = 1500,
    paths: int = 4000,
    law_temperature: float | None = None,
    seed: int = 0,
) -> LawCheck:
    """Return the law of Langevin paths at a temperature against exp(-F / law_temperature) / Z, by default the same.

    The paper prints law_temperature = 2 T in (2.16). The paths start in equal numbers at -1 and 1. Raises ValueError as
    langevin_paths and gibbs_law do.
    """
    start = np.where(np.arange(paths) % 2, 1.0, -1.0)[:, None]
    sample = langevin_paths(loss, start, temperature, lr, steps, integrator="leimkuhler_matthews", seed=seed)
    return check_law(sample, gibbs_law(loss.value, temperature if law_temperature is None else law_temperature))


# --------------------------------------------------------------------------------------------- order of convergence


@dataclass(frozen=True)
class StrongOrder:
    """Root mean square distance at a fixed time from the path of the finest step."""

    lr: list[float]
    rms: list[float]
    slope: float


def strong_order_experiment(
    loss: Loss = RIPPLE,
    temperature: float = 0.2,
    *,
    start: float = 0.4,
    duration: float = 1.0,
    coarse_steps: Sequence[int] = (16, 32, 64, 128),
    finest_steps: int = 2048,
    paths: int = 1000,
    seed: int = 0,
) -> StrongOrder:
    """Return the strong order of Euler-Maruyama on (2.15): 1, as its noise is additive and it is Milstein's method too.

    The grid of times is k * duration / n. Implements Eq. (5.17). Raises ValueError unless the temperature and the
    duration are finite and > 0 and every number of steps divides the finest.
    """
    check_positive(temperature=temperature, duration=duration)
    if any(n < 1 or finest_steps % n for n in coarse_steps):
        raise ValueError(f"coarse_steps={list(coarse_steps)}: must divide finest_steps={finest_steps}")
    begin = np.full((paths, 1), start)
    fine = torch.stack([normals(seed, paths)(k + 1) for k in range(finest_steps)])

    def end(steps: int) -> ndarray:
        every = finest_steps // steps
        xi = fine.unflatten(0, (steps, every)).sum(1) / math.sqrt(every)  # the same Brownian path
        hyper = {"lr": duration / steps, "temperature": temperature, "weight_decay": 0.0}
        walked = walk(Langevin(), hyper, begin, always(loss.gradient), steps, lambda k: xi[max(k - 1, 0)])
        return last(walked).x.numpy()

    finest = end(finest_steps)
    rms = [math.sqrt(np.mean((end(n) - finest) ** 2)) for n in coarse_steps]
    lr = [duration / n for n in coarse_steps]
    return StrongOrder(lr, rms, fitted_slope(lr, rms))


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of a straight line fitted to (log x, log y)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---------------------------------------------------------------------------------------------- mini-batch noise


def minibatch_temperature(trace: float, lr: float, d: int) -> float:
    """Return T = lr tr S / (2 d): the temperature of SGD whose gradients have the covariance S. Implements Eq. (2.14).

    With nu_mb = tr S / 2 of (2.14), T = lr nu_mb / d, not nu_mb. In the local entropy, T = 2 nu, it adds lr tr S / (4
    d) to the viscosity. Raises ValueError unless trace is finite and >= 0, lr finite and > 0 and d at least 1.
    """
    check_not_negative(trace=trace)
    check_positive(lr=lr, d=d)
    return lr * trace / (2 * d)


@dataclass(frozen=True)
class MinibatchNoise:
    """SGD with real mini-batches on a quadratic: the temperature of its noise."""

    variance: Measured  # of a coordinate of x, against that of the discrete chain
    temperature: float  # of SGD, by minibatch_temperature
    langevin_variance: float  # T / a: of Langevin dynamics at that temperature
    printed_variance: float  # nu_mb / a: the viscosity read off (2.14)


def minibatch_experiment(
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
) -> MinibatchNoise:
    """Return the stationary variance of mini-batch SGD on F = mean_i a |x - c_i|^2 / 2 in R^d.

    The samples c_i are such that the covariance S of a mini-batch gradient is (trace / d) I. Implements Eq. (2.11), the
    sum over the batch of size B. Implements Eq. (2.12), by the rule optimizers.langevin.Langevin at T = 0.
    Implements Eq. (2.13): the batches are drawn uniformly with replacement, the gradients unbiased. Raises ValueError
    unless all numbers are finite and > 0, lr * curvature < 2 and samples > d.
    """
    check_positive(curvature=curvature, d=d, trace=trace, lr=lr, batch_size=batch_size, steps=steps, paths=paths)
    if lr * curvature >= 2:
        raise ValueError(f"lr={lr:g}: lr * curvature = {lr * curvature:g}, must be < 2")
    if samples <= d:
        raise ValueError(f"samples={samples}: must be more than d={d}, for noise in every direction")
    seeds = torch.tensor([seed])
    random = streams.normal_(torch.empty(1, 1, samples * d, dtype=torch.float64), seeds, streams.Purpose.INIT, 0)
    cloud = random.view(samples, d).numpy()
    white = np.linalg.qr(cloud - cloud.mean(0))[0] * math.sqrt(samples)  # mean 0, covariance I
    centers = white * math.sqrt(trace * batch_size / d) / curvature

    def gradient(k: int, x: ndarray) -> ndarray:
        drawn = streams.integers(seeds, streams.Purpose.BATCHES, k, 1, paths * batch_size).view(paths, batch_size)
        return curvature * (x - centers[(drawn % samples).numpy()].mean(1))

    hyper = {"lr": lr, "temperature": 0.0, "weight_decay": 0.0}
    x = last(walk(Langevin(), hyper, np.zeros((paths, d)), gradient, steps, normals(seed, paths, d))).x.numpy()
    exact = lr * trace / d / (curvature * (2 - lr * curvature)) * (1 - (1 - lr * curvature) ** (2 * steps))
    temperature = minibatch_temperature(trace, lr, d)
    return MinibatchNoise(
        variance=Measured(float(np.mean(x**2)), exact, exact * math.sqrt(2 / (paths * d))),
        temperature=temperature,
        langevin_variance=temperature / curvature,
        printed_variance=trace / 2 / curvature,
    )


# -------------------------------------------------------------------------------------------- simulated annealing


@dataclass(frozen=True)
class Annealing:
    """Share of paths that end in the deeper of two wells."""

    annealed: float
    annealed_error: float  # standard error
    quenched: float  # at the final temperature from the start
    start_law: float  # Gibbs probabilities of the deeper well at the first
    final_law: float  # and at the last temperature


def annealing_experiment(
    *,
    tilt: float = 0.3,
    first: float = 0.5,
    final: float = 0.08,
    lr: float = 0.02,
    steps: int = 3000,
    paths: int = 1000,
    seed: int = 0,
) -> Annealing:
    """Return what simulated annealing does for paths in the wrong well of (y^2 - 1)^2 + tilt y: they leave it.

    All start at y = 1, in the shallower well. The temperature falls geometrically from first to final. Raises
    ValueError unless 0 < final <= first, 0 < tilt < 1.5 (two wells), and as langevin_paths does.
    """
    check_positive(first=first, final=final)
    if final > first:
        raise ValueError(f"final={final:g}: must be at most first={first:g}")
    if not 0 < tilt < 1.5:
        raise ValueError(f"tilt={tilt:g}: must lie in (0, 1.5), for two wells")
    loss = Loss(lambda y: DOUBLE_WELL.value(y) + tilt * y, lambda y: DOUBLE_WELL.gradient(y) + tilt)
    top = float(np.sort(np.roots([4, 0, -4, tilt]).real)[1])  # the barrier between the wells
    start = np.ones((paths, 1))

    def share(temperatures: ndarray) -> float:
        return float(np.mean(langevin_paths(loss, start, temperatures, lr, steps, seed=seed) < top))

    annealed = share(np.geomspace(first, final, steps))
    return Annealing(
        annealed=annealed,
        annealed_error=math.sqrt(max(annealed * (1 - annealed), 1 / paths) / paths),
        quenched=share(np.full(steps, final)),
        start_law=float(gibbs_law(loss.value, first).cdf(top)),
        final_law=float(gibbs_law(loss.value, final).cdf(top)),
    )
