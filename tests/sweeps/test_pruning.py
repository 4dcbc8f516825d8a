"""Runs of a fleet that are stopped early: against the definitions, written out as loops."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from burgersgd.sweeps.pruning import HalvingPruning, MedianPruning


class Point(NamedTuple):
    evaluations: int
    alive: Tensor
    validation_error: Tensor | None


def curves() -> list[list[float]]:
    """Return errors by point and run, no two alike: some fall slowly but far, some are soon at their plateaus."""
    generator = torch.Generator().manual_seed(3)
    noise = 0.05 * torch.rand(10, 9, generator=generator, dtype=torch.float64)
    falling = torch.linspace(1, 0, 10)[:, None] * torch.linspace(0.8, 1.2, 5)
    plateaus = torch.ones(10, 1) * torch.tensor([0.4, 0.5, 0.7, 0.8])
    return (torch.cat([plateaus, falling], dim=1) + noise).tolist()


def stopped(rule: MedianPruning | HalvingPruning, errors: list[list[float]]) -> list[int | None]:
    """Return after how many evaluations (10 per point) each run is stopped."""
    runs = len(errors[0])
    ends: list[int | None] = [None] * runs
    for k, row in enumerate(errors):
        alive = torch.tensor([end is None for end in ends])
        between = rule(Point(10 * k + 5, alive, None))  # a point without validation stops nothing
        assert not between.any()
        for run in rule(Point(10 * k, alive, torch.tensor(row, dtype=torch.float64))).nonzero().flatten().tolist():
            ends[run] = 10 * k
    return ends


def test_a_run_is_stopped_whose_lowest_error_is_above_the_median_of_the_means() -> None:
    errors, runs = curves(), 9
    seen: list[list[float]] = [[] for _ in range(runs)]
    ends: list[int | None] = [None] * runs
    for k, row in enumerate(errors):
        for run in range(runs):
            if ends[run] is None:
                seen[run].append(row[run])
        median = statistics.median(map(statistics.mean, seen))
        for run in range(runs):
            if ends[run] is None and 10 * k >= 30 and min(seen[run]) > median:
                ends[run] = 10 * k
    assert stopped(MedianPruning(warm_up=30), errors) == ends
    assert len({end for end in ends if end is not None}) >= 2  # they are not all stopped at once
    assert None in ends


def asked_of_optuna(pruner: Any, others: list[list[float]], own: list[float], noted: Sequence[Any] = ()) -> bool:
    """Return whether Optuna would prune a run with these errors if it knew the others ``[points][runs]`` to their ends.

    noted: what the pruner has noted of the others and, last, of the run itself.
    """
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=pruner)
    for other in range(len(others[0])):
        steps = {10 * k: row[other] for k, row in enumerate(others)}
        attributes = noted[other] if noted else {}
        study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=steps, system_attrs=attributes))
    trial = study.ask()
    for k, error in enumerate(own):
        trial.report(error, 10 * k)
    for name, value in (noted[-1] if noted else {}).items():
        study._storage.set_trial_system_attr(trial._trial_id, name, value)
    return trial.should_prune()


@pytest.mark.parametrize("runs", [8, 9])
def test_the_median_stops_what_optuna_would_that_is_shown_the_means(runs: int) -> None:
    pruners = pytest.importorskip("optuna").pruners
    errors = [row[-runs:] for row in curves()]
    ends = stopped(MedianPruning(warm_up=30), errors)
    assert len(set(ends)) > 2
    for k in range(len(errors)):
        means = []  # of runs that were stopped, up to then
        for run, end in enumerate(ends):
            seen = [row[run] for row in errors[: k + 1]][: None if end is None else end // 10 + 1]
            means.append(statistics.mean(seen))
        for run, end in enumerate(ends):
            if end is None or 10 * k <= end:
                pruner = pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=30)
                shown = [*errors[:k], means]
                own = [row[run] for row in errors[: k + 1]]
                assert asked_of_optuna(pruner, shown, own) == (end == 10 * k), (run, k)


def test_halving_stops_what_optuna_would() -> None:
    pruners = pytest.importorskip("optuna").pruners
    errors = torch.tensor(curves()).cummin(0).values.tolist()  # Optuna takes the last error for the lowest
    ends = stopped(HalvingPruning(budget=90, smallest=10, eta=3), errors)
    assert set(ends) == {10, 30, None}
    for rung, k in enumerate((1, 3)):
        there = [run for run, end in enumerate(ends) if end is None or end >= 10 * k]
        for run in there:
            others = [other for other in there if other != run]
            noted = [{f"completed_rung_{r}": errors[(1, 3)[r]][other] for r in range(rung + 1)} for other in others]
            noted.append({f"completed_rung_{r}": errors[(1, 3)[r]][run] for r in range(rung)})
            pruner = pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=3)
            shown = [[row[other] for other in others] for row in errors[: k + 1]]
            own = [row[run] for row in errors[: k + 1]]
            assert asked_of_optuna(pruner, shown, own, noted) == (ends[run] == 10 * k), (run, k)


def test_successive_halving_keeps_the_best_third_at_every_rung() -> None:
    errors = curves()
    ends = stopped(HalvingPruning(budget=90, smallest=10, eta=3), errors)
    at_10 = sorted(range(9), key=lambda run: min(errors[k][run] for k in (0, 1)))
    kept = sorted(at_10[:3], key=lambda run: min(errors[k][run] for k in (0, 1, 2, 3)))
    assert [run for run, end in enumerate(ends) if end == 10] == sorted(at_10[3:])
    assert [run for run, end in enumerate(ends) if end == 30] == sorted(kept[1:])
    assert [run for run, end in enumerate(ends) if end is None] == kept[:1]


@pytest.mark.parametrize("power", range(1, 13))
def test_a_budget_that_is_a_power_of_eta_has_that_many_rungs(power: int) -> None:
    """log(243, 3) is 4.999... in floating point."""
    rule = HalvingPruning(budget=3**power, smallest=1, eta=3)
    alive, error = torch.ones(3, dtype=torch.bool), torch.tensor([0.3, 0.1, 0.2])
    assert rule(Point(0, alive, error)).tolist() == [False, False, False]
    assert rule(Point(1, alive, error)).tolist() == [True, False, True]


@pytest.mark.parametrize("rule", [MedianPruning(0), HalvingPruning(budget=90, smallest=1, eta=2)])
def test_a_single_run_and_equal_runs_are_not_all_stopped(rule: MedianPruning | HalvingPruning) -> None:
    assert stopped(rule, [[0.1]] * 10) == [None]  # whose mean is below 0.1 in floating point
    fresh = type(rule)(*((0,) if isinstance(rule, MedianPruning) else (90, 1, 2)))
    assert None in stopped(fresh, [[0.1, 0.1, 0.1, 0.1]] * 10)


def test_a_diverged_run_is_neither_stopped_nor_taken_for_a_good_one() -> None:
    alive = torch.tensor([True, True, False, True, True])
    error = torch.tensor([0.5, 0.4, 0.1, 0.3, 0.6])  # of the diverged one, that of its last finite x
    # It counts as infinitely bad: the median is 0.5, without it 0.45 or less.
    assert MedianPruning(0)(Point(0, alive, error)).tolist() == [False, False, False, False, True]
    later = MedianPruning(1)
    later(Point(0, torch.ones(5, dtype=torch.bool), error))  # before it diverged it was the best
    assert later(Point(1, alive, error)).tolist() == [False, False, False, False, True]
    halving = HalvingPruning(budget=4, smallest=1, eta=2)
    assert halving(Point(1, alive, error)).tolist() == [True, False, False, False, True]  # the first rung: 2 of 5
