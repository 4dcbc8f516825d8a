"""Generated data have the documented properties and depend only on dataset.seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from burgersgd.config import DatasetConfig, Mnist1dConfig, TeacherStudentConfig, TwoSpiralsConfig
from burgersgd.datasets import load, synthetic
from burgersgd.datasets.preprocess import Raw

CASES: list[tuple[Callable[[Any], Raw], DatasetConfig]] = [
    (synthetic.mnist1d, Mnist1dConfig(n_samples=200)),
    (synthetic.two_spirals, TwoSpiralsConfig(n_samples=200)),
    (synthetic.teacher_student, TeacherStudentConfig(n_samples=200, outputs=3, teacher_depth=2)),
]


@pytest.mark.parametrize(("make", "config"), CASES)
def test_the_same_seed_makes_the_same_data_and_another_does_not(make: Callable[[Any], Raw], config: Any) -> None:
    first, again, other = make(config), make(config), make(replace(config, seed=1))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.train.targets, again.train.targets)
    assert not torch.equal(first.train.inputs, other.train.inputs)


@pytest.mark.parametrize(("make", "config"), CASES)
def test_data_sets_load_by_name(make: Callable[[Any], Raw], config: Any) -> None:
    data = load(config)
    assert data.name == config.name
    assert data.n_train + data.validation.n + data.test.n == 200
    assert data.train.inputs.dtype == torch.float32


def test_mnist1d_has_the_published_shape_and_balanced_classes() -> None:
    raw = synthetic.mnist1d(Mnist1dConfig())
    assert raw.train.inputs.shape == (5000, 40)
    assert raw.train.targets.bincount().tolist() == [500] * 10


def naive_mnist1d(label: int, padding: int, translation: int) -> np.ndarray:
    """Return one MNIST-1D example without anything random but its place: pad, stretch, move, read off."""
    curve = np.array(synthetic.DIGIT_CURVES[label])
    curve = (curve - curve.mean()) / curve.std()
    curve = np.concatenate([(curve - curve[0]) / 6, np.zeros(padding)])
    canvas = np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(curve)), curve)
    canvas = np.roll(canvas, translation)
    return np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, 72), canvas)


def test_mnist1d_without_noise_is_one_of_the_moved_and_stretched_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("CORRELATED_NOISE", "WHITE_NOISE", "SCALE", "SHEAR"):
        monkeypatch.setattr(synthetic, constant, 0.0)
    raw = synthetic.mnist1d(Mnist1dConfig(n_samples=50))
    places = [(padding, translation) for padding in range(36, 61) for translation in range(48)]
    curves = [np.array([naive_mnist1d(label, *place) for place in places]) for label in range(10)]
    found = set()
    for x, label in zip(raw.train.inputs.numpy(), raw.train.targets.tolist(), strict=True):
        error = np.abs(curves[label] - x).max(1)
        assert error.min() < 1e-6
        found.add(places[int(error.argmin())])
    assert len(found) > 40


def mnist1d_with(monkeypatch: pytest.MonkeyPatch, kept: str, flat: bool = True) -> np.ndarray:
    """Return 4000 examples with one of the four random changes kept; flat: as if every digit were the zero line."""
    for constant in {"CORRELATED_NOISE", "WHITE_NOISE", "SCALE", "SHEAR"} - {kept}:
        monkeypatch.setattr(synthetic, constant, 0.0)
    if flat:
        monkeypatch.setattr(synthetic, "_normalised_curves", lambda: np.zeros((10, 12)))
    return synthetic.mnist1d(Mnist1dConfig(n_samples=4000)).train.inputs.double().numpy()


STANDARD_ERROR = 1 / (2 * 4000) ** 0.5  # of a standard deviation, relative


def test_mnist1d_has_white_noise_of_the_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mnist1d_with(monkeypatch, "WHITE_NOISE")[:, -1]  # read off on a point of the canvas, not between two
    assert abs(x.std() / 0.02 - 1) < 4 * STANDARD_ERROR


def test_mnist1d_has_correlated_noise_of_the_published_size_beside_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mnist1d_with(monkeypatch, "CORRELATED_NOISE")
    widths = np.ceil(12 * 71 / (11 + np.arange(36, 61)))  # of the curve on the canvas, for each padding
    on_the_curve = (widths - 1).mean() / 48  # starts out of 48 that put canvas points 36 and 37 on the curve
    standard_error = (on_the_curve * (1 - on_the_curve) / 4000) ** 0.5
    assert abs((x[:, 20] == 0).mean() - on_the_curve) < 4 * standard_error
    beside = x[:, -1]  # where the curve never is
    last_point = gaussian_filter1d(np.eye(72), 2, axis=0)[-1]  # white noise -> its smoothed last point
    expected = 0.25 * np.sqrt((last_point**2).sum())
    assert abs(beside.std() / expected - 1) < 5 * STANDARD_ERROR


def test_mnist1d_is_sheared_by_the_published_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mnist1d_with(monkeypatch, "SHEAR")
    np.testing.assert_allclose(x[:, 0], -x[:, -1], atol=1e-7)
    rise = x[:, -1] - x[:, 0]  # uniform in +- 0.375
    assert 0.37 < np.abs(rise).max() <= 0.375
    assert abs(rise.std() / (0.75 / 12**0.5) - 1) < 4 * STANDARD_ERROR


def test_mnist1d_is_scaled_by_the_published_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = mnist1d_with(monkeypatch, "SCALE", flat=False)
    monkeypatch.setattr(synthetic, "SCALE", 0.0)
    plain = synthetic.mnist1d(Mnist1dConfig(n_samples=4000)).train.inputs.double().numpy()
    factor = np.abs(scaled).max(1) / np.abs(plain).max(1)
    assert 0.8 <= factor.min() < 0.805
    assert 1.195 < factor.max() <= 1.2


def test_smoothing_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).standard_normal((3, 72))
    np.testing.assert_allclose(synthetic.gaussian_smooth(x, 2.0), gaussian_filter1d(x, 2), atol=1e-14)


def test_spirals_without_noise_lie_on_their_curve() -> None:
    config = TwoSpiralsConfig(n_samples=300, noise=0.0, turns=1.25)
    raw = synthetic.two_spirals(config)
    x, y = raw.train.inputs.double().T
    radius = (x**2 + y**2).sqrt()
    angle = 2 * torch.pi * 1.25 * radius + torch.pi * raw.train.targets
    on_the_curve = torch.stack([radius * angle.cos(), radius * angle.sin()])
    torch.testing.assert_close(on_the_curve, torch.stack([x, y]), rtol=0, atol=2e-6)  # float32
    assert 0.95 < radius.max() <= 1
    assert raw.train.targets.bincount().tolist() == [150, 150]


def test_noise_on_spirals_has_its_standard_deviation() -> None:
    clean, noisy = (
        synthetic.two_spirals(TwoSpiralsConfig(n_samples=5000, noise=noise)).train.inputs for noise in (0.0, 0.3)
    )
    n = clean.numel()
    assert abs((noisy - clean).std().item() / 0.3 - 1) < 4 / (2 * n) ** 0.5  # 4 standard errors


def test_the_teacher_has_unit_variance_and_noise_comes_on_top() -> None:
    config = TeacherStudentConfig(n_samples=10_000, noise=0.0, outputs=2)
    clean = synthetic.teacher_student(config).train
    noisy = synthetic.teacher_student(replace(config, noise=0.5)).train
    assert torch.equal(clean.inputs, noisy.inputs)
    # Both the probe of 10,000 inputs and these have standard errors of about 0.01 in mean and variance.
    torch.testing.assert_close(clean.targets.mean(0), torch.zeros(2), rtol=0, atol=0.07)
    torch.testing.assert_close(clean.targets.var(0), torch.ones(2), rtol=0, atol=0.1)
    assert (noisy.targets - clean.targets).std().item() == pytest.approx(0.5, rel=4 / 20_000**0.5)


def test_the_teacher_is_the_same_for_any_number_of_examples() -> None:
    few, many = (synthetic.teacher_student(TeacherStudentConfig(n_samples=n, noise=0.0)).train for n in (50, 500))
    torch.testing.assert_close(few.targets, many.targets[:50])


def test_the_teacher_is_the_network_that_it_is_said_to_be() -> None:
    config = TeacherStudentConfig(n_samples=20, input_dim=3, teacher_width=40, teacher_depth=2, outputs=2, noise=0.0)
    rng = np.random.default_rng([config.seed, synthetic.TEACHER])
    layers = []
    for fan_in, fan_out in ((3, 40), (40, 40), (40, 2)):
        weight = np.array([[rng.standard_normal() for _ in range(fan_out)] for _ in range(fan_in)])
        layers.append((weight / fan_in**0.5, rng.standard_normal(fan_out)))

    def teacher(x: np.ndarray) -> np.ndarray:
        for weight, bias in layers[:-1]:
            x = np.tanh(x @ weight + bias)
        return x @ layers[-1][0]

    data = synthetic.teacher_student(config).train
    probe = teacher(rng.standard_normal((10_000, 3)))
    expected = (teacher(data.inputs.double().numpy()) - probe.mean(0)) / probe.std(0)
    np.testing.assert_allclose(data.targets.numpy(), expected, atol=1e-5)


def test_spirals_are_equally_dense_in_their_area() -> None:
    config = TwoSpiralsConfig(n_samples=4000, noise=0.0)
    radius = synthetic.two_spirals(config).train.inputs.double().norm(dim=1)
    assert abs(radius.square().mean() - 1 / 2) < 4 / (12 * 4000) ** 0.5  # radius^2 is uniform: 4 standard errors
    assert abs(radius.mean() - 2 / 3) < 4 * (1 / 18 / 4000) ** 0.5


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_teacher_is_linear_only_without_hidden_layers(depth: int) -> None:
    config = TeacherStudentConfig(n_samples=1000, teacher_depth=depth, noise=0.0)
    data = synthetic.teacher_student(config).train
    inputs = np.hstack([data.inputs.double().numpy(), np.ones((1000, 1))])
    _, sum_of_squares, _, _ = np.linalg.lstsq(inputs, data.targets.double().numpy(), rcond=None)
    unexplained = sum_of_squares[0] / 1000  # of a variance of 1
    assert unexplained < 1e-8 if depth == 0 else 0.05 < unexplained < 0.95


def test_the_curves_of_the_digits_are_as_they_were_copied() -> None:
    sums = [sum(curve) for curve in synthetic.DIGIT_CURVES]
    weighted = [sum(i * value for i, value in enumerate(curve)) for curve in synthetic.DIGIT_CURVES]
    assert [curve[0] for curve in synthetic.DIGIT_CURVES] == [5] * 10
    assert {len(curve) for curve in synthetic.DIGIT_CURVES} == {12}
    assert sums == pytest.approx([76.5, 53.2, 60.0, 70.0, 51.6, 56.5, 43.5, 66.8, 50.0, 54.0])
    assert weighted == pytest.approx([420.75, 318.4, 299.75, 385.0, 300.0, 342.5, 239.25, 341.6, 275.0, 307.8])
