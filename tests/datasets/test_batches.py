"""The order of examples: complete epochs, reproducible from any step, independent of the other runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burgersgd.datasets import Batches
from burgersgd.datasets import batches as batches_module
from burgersgd.streams import Purpose, integers

sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def naive_epoch(batches: Batches, epoch: int, run: int) -> list[list[int]]:
    """Return the batches of one epoch one step at a time, without what fills up a short one."""
    first = epoch * batches.evaluations_per_epoch
    steps = range(first, first + batches.evaluations_per_epoch)
    return [batches.indices(step, 1)[0, run, : batches.size(step)].tolist() for step in steps]


@given(sizes=sizes, epoch=st.integers(0, 5), seed=st.integers(0, 2**63 - 1))
def test_every_epoch_visits_every_example_once(sizes: tuple[int, int], epoch: int, seed: int) -> None:
    n, batch_size = sizes
    batches = Batches(n, batch_size, torch.tensor([seed, 7]))
    for run in range(2):
        visited = [example for batch in naive_epoch(batches, epoch, run) for example in batch]
        assert sorted(visited) == list(range(n))


@given(sizes=sizes, epoch=st.integers(0, 5))
def test_drop_last_gives_whole_batches_without_repetition(sizes: tuple[int, int], epoch: int) -> None:
    n, batch_size = sizes
    batches = Batches(n, batch_size, torch.tensor([3]), drop_last=True)
    visited = naive_epoch(batches, epoch, 0)
    assert [len(batch) for batch in visited] == [batch_size] * (n // batch_size)
    assert len({example for batch in visited for example in batch}) == batch_size * (n // batch_size)


@given(
    sizes=sizes,
    blocks=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 60)), min_size=1, max_size=4),
    with_replacement=st.booleans(),
    drop_last=st.booleans(),
)
def test_a_block_is_its_steps_in_whatever_order_blocks_are_asked_for(
    sizes: tuple[int, int], blocks: list[tuple[int, int]], with_replacement: bool, drop_last: bool
) -> None:
    n, batch_size = sizes
    batches = Batches(n, batch_size, torch.tensor([1, 2]), with_replacement, drop_last)
    for first, count in blocks:
        block = batches.indices(first, count)
        assert block.shape == (count, 2, batch_size)
        fresh = Batches(n, batch_size, torch.tensor([1, 2]), with_replacement, drop_last)
        assert torch.equal(block, torch.cat([fresh.indices(first + k, 1) for k in range(count)]))


@pytest.mark.parametrize("with_replacement", [False, True])
def test_a_run_sees_the_same_examples_alone_and_in_a_fleet(with_replacement: bool) -> None:
    company = Batches(50, 8, torch.tensor([5, 0, 2**40]), with_replacement)
    for run, seed in enumerate([5, 0, 2**40]):
        alone = Batches(50, 8, torch.tensor([seed]), with_replacement)
        assert torch.equal(company.indices(3, 20)[:, run], alone.indices(3, 20)[:, 0])


def test_runs_and_epochs_have_orders_of_their_own() -> None:
    batches = Batches(50, 10, torch.tensor([0, 1]))
    first, second = batches.indices(0, 5), batches.indices(5, 5)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, second)


def test_a_short_batch_is_filled_up_from_its_own_beginning() -> None:
    batches = Batches(10, 8, torch.tensor([0]))
    assert [batches.size(step) for step in range(4)] == [8, 2, 8, 2]
    last = batches.indices(1, 1)[0, 0].tolist()
    assert last == last[:2] * 4


@pytest.mark.parametrize(
    ("with_replacement", "drop_last", "evaluations"),
    [(False, False, 3), (False, True, 2), (True, False, 3), (True, True, 2)],
)
def test_an_epoch_is_so_many_evaluations(with_replacement: bool, drop_last: bool, evaluations: int) -> None:
    assert Batches(10, 4, torch.tensor([0]), with_replacement, drop_last).evaluations_per_epoch == evaluations


def test_a_batch_of_everything_keeps_the_order() -> None:
    batches = Batches(6, 6, torch.tensor([0, 1]))
    assert batches.evaluations_per_epoch == 1
    assert batches.indices(4, 3).tolist() == [[list(range(6))] * 2] * 3


def test_with_replacement_draws_uniformly_and_independently() -> None:
    n, batch_size, steps = 7, 7, 2000
    batches = Batches(n, batch_size, torch.tensor([11]), with_replacement=True)
    assert {batches.size(step) for step in range(5)} == {batch_size}
    drawn = batches.indices(0, steps)[:, 0]
    counts = drawn.flatten().bincount(minlength=n)
    expected = steps * batch_size / n
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 22.5  # 99.9 % of the chi-square distribution with 6 degrees of freedom
    repeats = float((drawn[:, 0] == drawn[:, 1]).double().mean())
    assert abs(repeats - 1 / n) < 3.3 * (1 / n * (1 - 1 / n) / steps) ** 0.5  # without replacement: 0


def test_draws_with_replacement_are_32_random_bits_times_n_rounded_down() -> None:
    """Lemire's multiply-shift: the remainder of a division would be as uniform for small n, and other numbers."""
    n, seeds = 1_000_003, torch.tensor([11, 2**40])
    drawn = Batches(n, 5, seeds, with_replacement=True).indices(3, 4)
    bits = integers(seeds, Purpose.BATCHES, 3, 4, 5)
    assert drawn.flatten().tolist() == [int(b) * n // 2**32 for b in bits.flatten().tolist()]


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_size_outside_the_training_set_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^trainer.batch_size={batch_size}: must be between 1 and 10, .*$"):
        Batches(10, batch_size, torch.tensor([0]))


def test_blocks_within_an_epoch_draw_one_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    original = batches_module.permutations

    def counting(seeds: torch.Tensor, epoch: int, n_epochs: int, n: int, **purpose: Any) -> torch.Tensor:
        epochs.append(epoch)
        return original(seeds, epoch, n_epochs, n, **purpose)

    monkeypatch.setattr(batches_module, "permutations", counting)
    batches = Batches(1_000, 50, torch.tensor([0, 1]))  # 20 evaluations an epoch
    for first in range(0, 40, 4):
        batches.indices(first, 4)
    assert epochs == [0, 1]


@pytest.mark.parametrize("drop_last", [False, True])
def test_epochs_that_are_drawn_together_are_those_drawn_alone(drop_last: bool) -> None:
    one, several = (Batches(13, 5, torch.tensor([3, 8]), drop_last=drop_last) for _ in range(2))
    several.epochs_at_once = 4
    for first, count in ((0, 9), (5, 14), (2, 3)):
        assert torch.equal(several.indices(first, count), one.indices(first, count))
