"""Generates data, equal for equal dataset.seed: MNIST-1D, two spirals, a teacher network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view

from burgersgd.datasets.dataset import DataError, Part
from burgersgd.datasets.preprocess import NOISE, POINTS, TEACHER, Raw, generator, memory
from burgersgd.schema import SplitDatasetConfig, named, opt


@dataclass
class Mnist1dConfig(SplitDatasetConfig):
    """MNIST-1D (Greydanus & Kobak 2020), generated: 40 points, 10 classes."""

    name: str = named("mnist1d")
    n_samples: int = opt(5000, "number of examples in the training, validation and test parts together", at_least=50)

    def read(self) -> Raw:
        """Return the curves."""
        return mnist1d(self)


@dataclass
class TwoSpiralsConfig(SplitDatasetConfig):
    """Two interleaved spirals, generated: 2 inputs, 2 classes."""

    name: str = named("two_spirals")
    n_samples: int = opt(2000, "number of examples in the training, validation and test parts together", at_least=20)
    noise: float = opt(0.1, "standard deviation of the noise on the points", at_least=0)
    turns: float = opt(1.5, "number of turns of each spiral", above=0)

    def read(self) -> Raw:
        """Return the points."""
        return two_spirals(self)


@dataclass
class TeacherStudentConfig(SplitDatasetConfig):
    """Generated regression on the outputs of a random tanh network, the teacher."""

    name: str = named("teacher_student")
    n_samples: int = opt(4000, "number of examples in the training, validation and test parts together", at_least=20)
    input_dim: int = opt(16, "number of inputs", at_least=1)
    teacher_width: int = opt(16, "number of units in each hidden layer of the teacher", at_least=1)
    teacher_depth: int = opt(1, "number of hidden layers of the teacher", at_least=0, at_most=1000)
    outputs: int = opt(1, "number of targets of each example", at_least=1)
    noise: float = opt(0.1, "standard deviation of the noise that is added to targets of unit variance", at_least=0)

    def read(self) -> Raw:
        """Return inputs and the teacher's noisy outputs."""
        return teacher_student(self)


DIGIT_CURVES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
"""The noise-free curve of each of the ten digits of MNIST-1D."""
CURVE_POINTS, MIN_PADDING, MAX_PADDING = 12, 36, 60
CANVAS = CURVE_POINTS + MAX_PADDING
MAX_TRANSLATION, SCALE, SHEAR = 48, 0.4, 0.75
CORRELATED_NOISE, CORRELATION_LENGTH, WHITE_NOISE = 0.25, 2.0, 0.02
LENGTH = 40

PROBE_SIZE = 10_000  # number of inputs from which the scale of the teacher's outputs is measured


def mnist1d(config: Mnist1dConfig) -> Raw:
    """Return MNIST-1D ``[n_samples, 40]``, ten classes of equal size (Greydanus & Kobak, Scaling down deep learning).

    A digit is a curve of 12 points, extended by 36 to 60 zeros, interpolated at 72 points, scaled by 1 +- 0.2, shifted
    by up to 47 points, with correlated noise outside of the curve, white noise and a random slope everywhere, and
    interpolated at 40 points. Procedure and constants are those of the paper, but the random numbers differ from those
    of the published file.
    """
    n = config.n_samples
    _check_size(config, n * CANVAS)
    rng = generator(config.seed, POINTS)
    labels = np.arange(n) % 10

    padding = rng.integers(MIN_PADDING, MAX_PADDING + 1, (n, 1))
    position = np.linspace(0, 1, CANVAS) * (CURVE_POINTS + padding - 1)  # of a canvas point on the padded curve
    left = np.minimum(np.floor(position).astype(int), CURVE_POINTS)  # the padding after the curve is zero
    padded = np.pad(_normalised_curves(), ((0, 0), (0, 2)))[labels[:, None], [[*range(CURVE_POINTS + 2)]]]
    left_value, right_value = np.take_along_axis(padded, left, 1), np.take_along_axis(padded, left + 1, 1)
    signal = left_value + (position - np.floor(position)) * (right_value - left_value)

    signal *= 1 + SCALE * (rng.random((n, 1)) - 0.5)
    shifted = (np.arange(CANVAS) - rng.integers(0, MAX_TRANSLATION, (n, 1))) % CANVAS
    signal, position = np.take_along_axis(signal, shifted, 1), np.take_along_axis(position, shifted, 1)

    correlated = gaussian_smooth(CORRELATED_NOISE * rng.standard_normal((n, CANVAS)), CORRELATION_LENGTH)
    signal = np.where(position < CURVE_POINTS, signal, correlated)
    signal += WHITE_NOISE * rng.standard_normal((n, CANVAS))
    signal -= SHEAR * (rng.random((n, 1)) - 0.5) * np.linspace(-0.5, 0.5, CANVAS)

    position = np.linspace(0, CANVAS - 1, LENGTH)
    left = np.minimum(position.astype(int), CANVAS - 2)
    signal = signal[:, left] + (position - left) * (signal[:, left + 1] - signal[:, left])
    return _classification(signal, labels, 10)


def _normalised_curves() -> Float64[ndarray, "digits points"]:
    """Return the curves with variance 1 / 36, starting and ending at 0."""
    curves = np.array(DIGIT_CURVES)
    return (curves - curves[:, :1]) / curves.std(1, keepdims=True) / 6


def gaussian_smooth(x: Float64[ndarray, "n length"], sigma: float) -> Float64[ndarray, "n length"]:
    """Return rows convolved with a Gaussian truncated at 4 sigma, mirrored at the ends, as in scipy.ndimage."""
    radius = round(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    mirrored = np.pad(x, ((0, 0), (radius, radius)), mode="symmetric")
    return sliding_window_view(mirrored, 2 * radius + 1, axis=1) @ (kernel / kernel.sum())


def two_spirals(config: TwoSpiralsConfig) -> Raw:
    """Return points ``[n_samples, 2]`` on two interleaved spirals (`turns` turns, radius 1) plus noise."""
    n = config.n_samples
    _check_size(config, 2 * n)
    labels = np.arange(n) % 2
    radius = np.sqrt(generator(config.seed, POINTS).random(n))  # uniform density along the curve
    angle = 2 * np.pi * config.turns * radius + np.pi * labels
    points = radius * np.stack([np.cos(angle), np.sin(angle)])
    noise = generator(config.seed, NOISE).standard_normal((n, 2))
    return _classification(points.T + config.noise * noise, labels, 2)


def teacher_student(config: TeacherStudentConfig) -> Raw:
    """Return normal inputs ``[n_samples, input_dim]`` and the outputs of a random tanh network, plus noise.

    The teacher has teacher_depth hidden layers of teacher_width units, weights N(0, 1 / fan-in), biases N(0, 1); its
    outputs have mean 0 and variance 1 over the inputs, to which noise of standard deviation `noise` is added.
    """
    n, width, depth = config.n_samples, config.teacher_width, config.teacher_depth
    examples = max(n, PROBE_SIZE) * (config.input_dim + width + config.outputs)
    _check_size(config, examples + width * (config.input_dim + width * depth + config.outputs))
    rng = generator(config.seed, TEACHER)
    widths = [config.input_dim, *[width] * depth, config.outputs]
    layers = [
        (rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in), rng.standard_normal(fan_out))
        for fan_in, fan_out in pairwise(widths)
    ]

    def teacher(x: ndarray) -> ndarray:
        for weight, bias in layers[:-1]:
            x = np.tanh(x @ weight + bias)
        return x @ layers[-1][0]

    # The scale is measured on separate inputs, so that it depends neither on the examples nor on n_samples.
    probe = teacher(rng.standard_normal((PROBE_SIZE, config.input_dim)))
    inputs = generator(config.seed, POINTS).standard_normal((n, config.input_dim))
    outputs = (teacher(inputs) - probe.mean(0)) / probe.std(0)
    outputs += config.noise * generator(config.seed, NOISE).standard_normal(outputs.shape)
    return Raw("regression", config.outputs, Part(_float_tensor(inputs), _float_tensor(outputs)))


def _check_size(config: Any, numbers: int) -> None:
    """Raise DataError where that many float64 numbers do not fit into the memory of this machine."""
    if 8 * numbers > memory():
        size = f"{8 * numbers / 2**30:.3g} GiB"
        raise DataError(
            f"dataset={config.name}: would take {size}, more than the memory of this machine; make the data set smaller"
        )


def _classification(inputs: Float64[ndarray, "n features"], labels: Int64[ndarray, " n"], classes: int) -> Raw:
    return Raw("classification", classes, Part(_float_tensor(inputs), torch.from_numpy(labels)))


def _float_tensor(x: ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32))
