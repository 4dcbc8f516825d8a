"""Preprocessing of all data sets: parts, subsets, label noise and scaling do not affect one another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burgersgd.datasets import DataError, Dataset, Options, Part
from burgersgd.datasets.preprocess import Raw, preprocess

N, CLASSES = 60, 4
TEST_OF_SEED_0 = [16, 27, 20, 8, 42, 34]


def numbered(n: int = N, classes: int = CLASSES, start: int = 0) -> Part:
    """Return examples whose only input is their number, so that they can be recognised; label = number mod classes."""
    number = torch.arange(start, start + n)
    return Part(number.float()[:, None], number % classes)


def make(raw: Raw | None = None, **options: Any) -> Dataset:
    """Return numbered examples (unscaled unless said otherwise) prepared with options."""
    raw = raw or Raw("classification", CLASSES, numbered())
    return preprocess("numbered", raw, Options(**{"standardize": False} | options))


def numbers(part: Part) -> list[int]:
    return [int(x) for x in part.inputs[:, 0]]


@given(
    n=st.integers(10, 80),
    validation=st.floats(0.1, 0.45),
    test=st.floats(0.1, 0.45),
    seed=st.integers(0, 2**32),
)
def test_the_parts_are_disjoint_and_cover_everything(n: int, validation: float, test: float, seed: int) -> None:
    raw = Raw("classification", CLASSES, numbered(n))
    data = make(raw, validation_fraction=validation, test_fraction=test, seed=seed)
    assert (data.validation.n, data.test.n) == (round(validation * n), round(test * n))
    assert sorted(numbers(data.train) + numbers(data.validation) + numbers(data.test)) == list(range(n))
    for part in (data.train, data.validation, data.test):
        assert part.targets.tolist() == [number % CLASSES for number in numbers(part)]


def test_the_split_of_seed_0_is_the_one_it_always_was() -> None:
    data = make()
    assert numbers(data.test)[:6] == TEST_OF_SEED_0


@pytest.mark.parametrize("options", [{"train_size": 7}, {"label_noise": 0.5}, {"train_size": 7, "label_noise": 0.9}])
def test_validation_and_test_do_not_depend_on_what_is_done_to_training(options: dict[str, Any]) -> None:
    plain, changed = make(), make(**options, noisy_validation=False)
    for part in ("validation", "test"):
        assert torch.equal(getattr(plain, part).inputs, getattr(changed, part).inputs)
        assert torch.equal(getattr(plain, part).targets, getattr(changed, part).targets)


def test_the_test_part_does_not_depend_on_the_validation_fraction() -> None:
    assert numbers(make(validation_fraction=0.1).test) == numbers(make(validation_fraction=0.5).test)


def test_another_seed_is_another_split() -> None:
    assert numbers(make(seed=0).test) != numbers(make(seed=1).test)


def test_a_small_training_set_is_the_beginning_of_a_larger_one() -> None:
    assert numbers(make(train_size=5).train) == numbers(make(train_size=20).train)[:5] == numbers(make().train)[:5]


def test_given_parts_are_used_as_they_are() -> None:
    raw = Raw("classification", CLASSES, numbered(), test=numbered(8, start=100))
    data = make(raw, validation_fraction=0.25)
    assert numbers(data.test) == list(range(100, 108))
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(N))
    assert data.validation.n == 15
    raw = raw._replace(validation=numbered(4, start=200))
    data = make(raw)
    assert numbers(data.validation) == [200, 201, 202, 203]
    assert sorted(numbers(data.train)) == list(range(N))


@given(
    label_noise=st.floats(0, 0.99),
    train_size=st.integers(1, 36),
    seed=st.integers(0, 1000),
)
def test_label_noise_changes_exactly_its_share_of_training_labels(
    label_noise: float, train_size: int, seed: int
) -> None:
    data = make(label_noise=label_noise, train_size=train_size, seed=seed)
    true = torch.tensor(numbers(data.train)) % CLASSES
    assert int((data.train.targets != true).sum()) == round(label_noise * train_size)
    assert set(data.train.targets.tolist()) <= set(range(CLASSES))


@pytest.mark.parametrize("given", [False, True], ids=["split off", "given"])
@given(label_noise=st.floats(0, 0.99), seed=st.integers(0, 1000), train_size=st.integers(1, 36))
def test_label_noise_changes_its_share_of_the_validation_labels_and_no_test_label(
    given: bool, label_noise: float, seed: int, train_size: int
) -> None:
    parts = {"validation": numbered(17, start=100), "test": numbered(11, start=200)} if given else {}
    data = make(Raw("classification", CLASSES, numbered(), **parts), label_noise=label_noise, seed=seed)
    for part, share in ((data.validation, label_noise), (data.test, 0)):
        true = torch.tensor(numbers(part)) % CLASSES
        assert int((part.targets != true).sum()) == round(share * part.n)
    again = make(
        Raw("classification", CLASSES, numbered(), **parts), label_noise=label_noise, seed=seed, train_size=train_size
    )
    assert torch.equal(data.validation.targets, again.validation.targets)


def test_the_noise_of_the_validation_part_is_drawn_apart_from_that_of_the_training_part() -> None:
    """Else the same positions of both parts would be changed."""
    given = Raw("classification", CLASSES, numbered(200), validation=numbered(200), test=numbered(8))
    data = make(given, label_noise=0.5)
    wrong = [part.targets != torch.tensor(numbers(part)) % CLASSES for part in (data.train, data.validation)]
    assert 20 < int((wrong[0] & wrong[1]).sum()) < 80, "of two independent halves 50 are expected, sd 5"


def test_more_label_noise_changes_more_labels_and_the_same_ones_alike() -> None:
    clean, less, more = make(), make(label_noise=0.25), make(label_noise=0.75)
    changed = less.train.targets != clean.train.targets
    assert torch.equal(less.train.targets[changed], more.train.targets[changed])


def test_another_seed_changes_other_labels() -> None:
    train = [make(label_noise=0.5, seed=seed).train for seed in (0, 1)]
    changed = [part.targets != torch.tensor(numbers(part)) % CLASSES for part in train]
    assert not torch.equal(changed[0], changed[1])


def test_label_noise_draws_the_other_classes_alike() -> None:
    n = 30_000
    raw = Raw("classification", CLASSES, numbered(n))
    data = make(raw, label_noise=0.9)
    true = torch.tensor(numbers(data.train)) % CLASSES
    shift = ((data.train.targets - true) % CLASSES).bincount(minlength=CLASSES)[1:]
    expected = int(shift.sum()) / (CLASSES - 1)
    assert float(((shift - expected) ** 2 / expected).sum()) < 13.8  # 99.9 % of chi-square, 2 degrees of freedom


def test_label_noise_exchanges_two_classes() -> None:
    data = make(Raw("classification", 2, numbered(classes=2)), label_noise=0.25)
    true = torch.tensor(numbers(data.train)) % 2
    wrong = data.train.targets != true
    assert int(wrong.sum()) == data.train.n // 4 > 0
    assert torch.equal(data.train.targets[wrong], 1 - true[wrong])


def test_label_noise_needs_classes() -> None:
    values, alike = Part(torch.randn(20, 2), torch.randn(20, 1)), numbered(20, classes=1)
    for raw in (Raw("regression", 3, values), Raw("regression", 1, values), Raw("classification", 1, alike)):
        with pytest.raises(DataError, match=r"^dataset.label_noise=0.1: must be 0, .*$"):
            make(raw, label_noise=0.1)


def vectors() -> Raw:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 100.0, 0.01])
    inputs = torch.randn(200, 3, generator=generator) * scale + 5 * scale
    return Raw("regression", 2, Part(inputs, torch.randn(200, 2, generator=generator)))


def test_vectors_are_scaled_by_feature_with_the_training_part_only() -> None:
    scaled, unscaled = make(vectors(), standardize=True, train_size=50), make(vectors(), train_size=50)
    mean = unscaled.train.inputs.mean(0)
    std = unscaled.train.inputs.std(0, correction=0)
    for part in ("train", "validation", "test"):
        expected = (getattr(unscaled, part).inputs - mean) / std
        torch.testing.assert_close(getattr(scaled, part).inputs, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(getattr(scaled, part).targets, getattr(unscaled, part).targets)


def test_images_are_scaled_by_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 5, 4, generator=generator) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    data = make(Raw("classification", 2, Part(images, torch.arange(40) % 2)), standardize=True)
    by_channel = data.train.inputs.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_channel.std(1, correction=0), torch.ones(3))
    assert data.train.inputs[:, 0, 0].std(0).min() > 0.1  # not by pixel: these differ
    assert (data.train.inputs.mean(0).abs() > 0.05).any()


def test_pixels_become_numbers_in_0_to_1() -> None:
    images = torch.arange(0, 256, dtype=torch.uint8).repeat(2).view(32, 1, 4, 4)
    data = make(Raw("classification", 2, Part(images, torch.arange(32) % 2)))
    values = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs]).unique()
    torch.testing.assert_close(values, torch.arange(256) / 255)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e7])
def test_what_does_not_vary_is_only_shifted(constant: float) -> None:
    inputs = torch.stack([torch.full((50,), constant), torch.arange(50.0)], dim=1)
    data = make(Raw("classification", 2, Part(inputs, torch.arange(50) % 2)), standardize=True)
    assert data.train.inputs[:, 0].tolist() == [0.0] * data.n_train
    assert data.train.inputs[:, 1].std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "dataset.train_size=0: must be between 1 and 36"),
        ({"train_size": 37}, "dataset.train_size=37: must be between 1 and 36"),
        ({"label_noise": 1.0}, r"dataset.label_noise=1.0: must be in \[0, 1\)"),
        ({"label_noise": -0.1}, r"dataset.label_noise=-0.1: must be in \[0, 1\)"),
        ({"label_noise": float("nan")}, r"dataset.label_noise=nan: must be in \[0, 1\)"),
        ({"validation_fraction": -0.1}, r"dataset.validation_fraction=-0.1: must be in \[0, 1\)"),
        ({"test_fraction": 1.0}, "dataset.test_fraction=1.0: must be between 0 and 1"),
        ({"test_fraction": 0.001}, "dataset.test_fraction=0.001: selects none of 60 examples"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "dataset.validation_fraction=0.5 leaves no training"),
        ({"seed": -1}, "dataset.seed=-1: must be at least 0"),
    ],
)
def test_options_that_cannot_be_met_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}") as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_options_are_found_among_the_attributes_of_a_config() -> None:
    @dataclasses.dataclass
    class Config:
        seed: int = 4
        label_noise: float = 0.5
        path: str = "not an option of all data sets"

    assert Options.of(Config()) == Options(seed=4, label_noise=0.5)


def test_moving_a_data_set_keeps_class_numbers() -> None:
    data = make().to("cpu", torch.float64)
    assert data.train.inputs.dtype == torch.float64
    assert data.test.targets.dtype == torch.int64
    assert make(vectors()).to("cpu", torch.float64).validation.targets.dtype == torch.float64
    assert (data.input_shape, data.n_train, data.n_outputs) == ((1,), 36, CLASSES)


X5 = torch.zeros(5, 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (Raw("classification", 3, numbered()), "labels are 0 to 3, must be 0 to 2"),
        (
            Raw("classification", 4, numbered(), numbered()._replace(targets=-numbered().targets)),
            "labels are -3 to 0, .*",
        ),
        (
            Raw("classification", 4, numbered(), test=Part(torch.zeros(5, 1), torch.zeros(4).long())),
            "5 inputs and 4 targets, .*",
        ),
        (Raw("classification", 4, Part(torch.zeros(0, 1), torch.zeros(0).long())), "0 inputs and 0 targets, .*"),
        (Raw("regression", 1, Part(torch.zeros(9, 1), torch.full((9, 1), torch.inf))), "all targets must be finite .*"),
        (Raw("regression", 1, Part(torch.full((9, 1), torch.nan), torch.zeros(9, 1))), "all inputs must be finite .*"),
    ],
)
def test_data_of_any_source_is_checked(raw: Raw, message: str) -> None:
    with pytest.raises(DataError, match=f"^dataset=numbered: {message}$"):
        make(raw)


def test_inputs_that_overflow_when_they_are_scaled_are_refused() -> None:
    inputs = torch.tensor([[3e38], [3e38], [3e38], [-3e38]]).repeat(10, 1)
    raw = Raw("classification", 2, Part(inputs, torch.arange(40) % 2))
    assert make(raw).n_train == 24
    with pytest.raises(
        DataError, match=r"^dataset=numbered: inputs are not finite in float32 after standardization; .*$"
    ):
        make(raw, standardize=True)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("label_noise", 1.0, r"must be in \[0, 1\)"),
        ("label_noise", -0.1, r"must be in \[0, 1\)"),
        ("validation_fraction", 1.0, r"must be in \[0, 1\)"),
        ("validation_fraction", -0.1, r"must be in \[0, 1\)"),
        ("test_fraction", 0.0, "must be between 0 and 1, both excluded"),
        ("test_fraction", 1.0, "must be between 0 and 1, both excluded"),
        ("seed", -1, "must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, value: float, allowed: str) -> None:
    with pytest.raises(DataError, match=f"^dataset.{name}={value}: {allowed}$"):
        Options(**{name: value})  # pyright: ignore[reportArgumentType]


def test_options_at_the_ends_of_their_ranges_are_taken() -> None:
    Options(label_noise=0.0, validation_fraction=0.0, test_fraction=1e-9, seed=0)
    Options(label_noise=0.99, validation_fraction=0.99, test_fraction=0.99)
