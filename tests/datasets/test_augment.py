"""Augmentation against loops over pixels, and in every engine: only training uses it, each run by its own stream."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from burgersgd.api import resume, train
from burgersgd.build.prepared import prepare
from burgersgd.config import DigitsConfig, LeNetConfig, SamConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.datasets import Batches, DataError, from_arrays
from burgersgd.datasets.augment import Augmentation, augmentation_of
from burgersgd.identity import config_hash
from burgersgd.streams import integers
from burgersgd.training.gradients import eager_gradient
from burgersgd.training.regime import minibatch_traces
from tests.conftest import small_config


def naive(image: np.ndarray, row: int, column: int, mirrored: bool) -> np.ndarray:
    """Return an image with 0 around it, seen through a window that starts at (row, column), pixel by pixel."""
    out = np.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            ii, jj = i + row, j + column
            if 0 <= ii < height and 0 <= jj < width:
                out[:, i, width - 1 - j if mirrored else j] = image[:, ii, jj]
    return out


@pytest.mark.parametrize(("kind", "variants"), [("crop_flip", 2 * 3 * 5), ("shift", 3 * 5)])
def test_every_variant_is_the_raw_image_moved_mirrored_and_then_scaled(kind: str, variants: int) -> None:
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (20, 2, 7, 15)).astype(np.uint8)
    data = from_arrays(raw, rng.integers(0, 3, 20), standardize=True).to("cpu", torch.float64)
    change = augmentation_of(kind, data)
    assert change is not None
    assert (change.variants, change.reach) == (variants, (1, 2))
    mean, deviation = (np.asarray(t, dtype=np.float64)[0] for t in (data.units.mean, data.units.deviation))
    originals = data.train.inputs.numpy() * deviation + mean
    numbers = torch.arange(variants * data.n_train).view(variants, data.n_train)
    changed = change(data.train.inputs, numbers).numpy()
    seen = set()
    for variant in range(variants):
        rest, mirrored = divmod(variant, 2) if kind == "crop_flip" else (variant, 0)
        row, column = rest // 5 - 1, rest % 5 - 2
        seen.add((row, column, mirrored))
        for example in (0, 4, data.n_train - 1):
            expected = (naive(originals[example], row, column, bool(mirrored)) - mean) / deviation
            np.testing.assert_allclose(changed[variant, example], expected, atol=1e-6)
    assert len(seen) == variants


def test_a_run_draws_every_variant_equally_often_from_a_stream_of_its_own() -> None:
    seeds, n, variants = torch.tensor([7, 2**40 + 1]), 30, 18
    batches = Batches(n, 12, seeds, variants=variants)
    plain = Batches(n, 12, seeds)
    drawn = batches.indices(0, 600)
    assert torch.equal(drawn % n, plain.indices(0, 600))  # the order of the examples is as it was
    counts = torch.stack([(drawn[:, run] // n).flatten().bincount(minlength=variants) for run in range(2)])
    assert counts.shape == (2, variants)
    for run in range(2):
        assert stats.chisquare(counts[run].numpy()).pvalue > 1e-4  # fixed streams: one look
    assert abs(np.corrcoef((drawn // n).flatten(2).permute(1, 0, 2).flatten(1).numpy())[0, 1]) < 0.05  # 1 / sqrt(7200)
    alone = Batches(n, 12, seeds[1:], variants=variants)
    assert torch.equal(alone.indices(37, 70)[:, 0], drawn[37:107, 1])
    other = batches.of_purpose(batches.purpose + (1 << 16)).indices(0, 600)  # of another replica
    assert 0.9 < (other // n != drawn // n).double().mean() < 0.98  # 17 of 18
    assert int(other.max()) >= n * (variants - 1)
    words = integers(seeds, 5, 11, 1, 12)  # the purpose's number and the scale are part of the reproducibility contract
    assert torch.equal(drawn[11] // n, (words[0].double() / 2**32 * variants).floor().long())
    with_replacement = Batches(n, 12, seeds, with_replacement=True, variants=variants).indices(5, 9)
    assert torch.equal(with_replacement // n, drawn[5:14] // n)


def config(seed: int = 0, augment: str = "crop_flip", **changes: Any) -> TrainConfig:
    trainer = {"budget": 12, "batch_size": 400, "precision": "float64", "compile": "off"} | changes.pop("trainer", {})
    given: dict[str, Any] = {"optimizer": SgdConfig(lr=0.3, momentum=0.6)} | changes
    return small_config(seed, dataset=DigitsConfig(augment=augment), trainer=TrainerConfig(**trainer), **given)


def expected(prepared: Any, optimizer: Any, budget: int) -> Tensor:
    """Return x of a single run after SGD with momentum on images changed one by one."""
    fleet, problem = prepared.fleet(), prepared.problem
    change: Augmentation = problem.augmentation
    x, velocity = fleet.x.clone(), torch.zeros_like(fleet.x)
    plain = dataclasses.replace(problem, augmentation=None)
    black = change.black.numpy()
    for k in range(budget):
        numbers = fleet.batches.indices(k, 1)[0, 0, : fleet.batches.size(k)]
        images = []
        for number in numbers.tolist():
            variant, example = divmod(number, change.n)
            rest, mirrored = divmod(variant, 2) if change.flips else (variant, 0)
            image = problem.inputs[example].numpy() - black
            images.append(naive(image, rest // 3 - 1, rest % 3 - 1, bool(mirrored)) + black)
        targets = problem.targets[numbers % change.n]
        batch = dataclasses.replace(plain, inputs=torch.tensor(np.stack(images)), targets=targets)
        grad, _ = eager_gradient(batch, x, None, None)
        velocity = optimizer.momentum * velocity + grad
        x = x - optimizer.lr * velocity
    return x[0]


@pytest.mark.parametrize(("side", "reach"), [(32, 4), (28, 4), (8, 1), (40, 5), (3, 1)])
def test_images_are_moved_by_an_eighth_of_their_side(side: int, reach: int) -> None:
    data = from_arrays(np.zeros((20, 1, side, 2 * side), np.uint8), np.arange(20) % 2)
    change = augmentation_of("shift", data)
    assert change is not None
    assert change.reach == (reach, round(2 * side / 8))


@pytest.mark.parametrize(
    "engine", ["eager", "native_update", "graphed", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("augment", ["crop_flip", "shift"])
def test_every_engine_trains_on_the_changed_images(augment: str, engine: str) -> None:
    configs = [config(seed, augment) for seed in (5, 0, 9)]
    together, alone = prepare(configs, engine=engine), prepare(configs[1:2], engine=engine)
    together.engine = alone.engine = engine  # graphed is PyTorch without a graph on the CPU
    fleets = [together.fleet(), alone.fleet()]
    for fleet in fleets:
        fleet.advance(12)
    naive_x = expected(prepare(configs[1:2]), configs[0].optimizer, 12)
    assert torch.allclose(fleets[0].x[1], naive_x, rtol=0, atol=1e-12)
    assert torch.allclose(fleets[1].x[0], naive_x, rtol=0, atol=1e-12)
    without = prepare([config(0, "none")]).fleet()
    without.advance(12)
    assert float((without.x[0] - naive_x).abs().max()) > 1e-3


def test_runs_that_vmap_cannot_batch_have_the_same_bits_in_any_fleet() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))
    fleets = [prepare([config(seed) for seed in seeds], model=network).fleet() for seeds in ((5, 0, 9), (0,))]
    for fleet in fleets:
        fleet.advance(12)
    assert torch.equal(fleets[0].x[1], fleets[1].x[0])


def test_both_gradients_of_sam_see_the_same_changed_images_and_full_batches_are_changed() -> None:
    fleet = prepare([config(optimizer=SamConfig(lr=0.2))]).fleet()
    fleet.inputs.load(0)
    assert torch.equal(fleet.inputs.indices(0), fleet.inputs.indices(1))  # pyright: ignore[reportArgumentType]
    assert not torch.equal(fleet.inputs.indices(2), fleet.inputs.indices(4))  # pyright: ignore[reportArgumentType]
    n = prepare([config()]).data.n_train
    full = prepare([config(trainer={"batch_size": n})]).fleet()
    full.inputs.load(0)
    numbers = full.inputs.indices(0)
    assert numbers is not None
    assert torch.equal(numbers[0] % n, torch.arange(n))
    assert int((numbers // n).unique().numel()) == 18


def test_evaluation_sees_the_images_as_they_are() -> None:
    changed, plain = prepare([config()]), prepare([config(augment="none")])
    x = plain.fleet().x
    for part in ("train", "validation", "test"):
        for ours, theirs in zip(
            changed.evaluator(getattr(changed.data, part))(x),
            plain.evaluator(getattr(plain.data, part))(x),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
    assert changed.data.digest == plain.data.digest
    result = train(config(), record=False, progress=False)
    x = torch.cat([p.detach().flatten() for p in result.model.parameters()])
    _, error = changed.evaluator(changed.data.test)(x[None])
    assert float(error) == result.test_error


def test_a_stopped_run_is_resumed_bit_for_bit_also_with_convolutions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (60, 3, 20, 28)).astype(np.uint8), np.arange(60) % 3
    given: dict[str, Any] = {"model": LeNetConfig(), "output_root": str(tmp_path)}
    ended = {
        budget: train(
            config(3, trainer={"budget": budget, "batch_size": 15}, **given),
            dataset=data,
            record=budget < 7,
            progress=False,
        )
        for budget in (7, 3)
    }
    assert ended[3].folder is not None
    rest = resume(ended[3].folder, budget=7, dataset=data, progress=False)
    for ours, theirs in zip(rest.model.parameters(), ended[7].model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_noise_of_a_batch_has_that_of_its_images_in_it() -> None:
    fleets = [prepare([config(augment=augment, trainer={"batch_size": 60})]).fleet() for augment in ("none", "shift")]
    plain, changed = (minibatch_traces(fleet, fleet.x)[0] for fleet in fleets)
    assert changed != plain
    assert changed == pytest.approx(plain, rel=0.5)


def test_with_augmentation_autograd_replaces_the_c_gradient_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "burgersgd"):
        assert prepare([config(trainer={"compile": "auto"})]).engine == "native_update"
        assert not caplog.records
        assert prepare([config(trainer={"compile": "native"})]).engine == "native_update"
        assert "dataset.augment" in caplog.text
    assert prepare([config(augment="none", trainer={"compile": "native"})]).engine == "native"


def test_examples_that_are_no_images_are_refused_in_one_line() -> None:
    x, y = np.zeros((40, 6), dtype=np.float32), np.arange(40) % 2
    with pytest.raises(
        DataError,
        match=r"^dataset.augment=shift: must be none, because the examples have shape \[6\] and are not images",
    ):
        prepare([config(augment="shift", trainer={"batch_size": 5})], dataset=(x, y))
    images = prepare([config(augment="shift", trainer={"batch_size": 5})], dataset=(x.reshape(40, 1, 2, 3), y))
    assert images.problem.augmentation is not None


def test_the_default_is_what_was_before_and_no_part_of_the_hash() -> None:
    plain = config(augment="none")
    hashes = {config_hash(config(augment=kind), 12) for kind in ("none", "crop_flip", "shift")}
    assert len(hashes) == 3
    assert config_hash(plain, 12) == config_hash(dataclasses.replace(plain, dataset=DigitsConfig()), 12)
