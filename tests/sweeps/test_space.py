"""The space of a sweep: grids as Hydra makes them, zipped lists, and samples of ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from scipy import stats

from burgersgd.config import ConfigError, SweepConfig
from burgersgd.sweeps.compose import Composer
from burgersgd.sweeps.space import Range, Space

LOG = "optimizer.nu=tag(log, interval(1e-9,1e-5))"


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def jobs(composer: Composer, words: Sequence[str], **settings: Any) -> list[list[str]]:
    return Space(words, SweepConfig(**settings), composer).jobs()


def column(made: list[list[str]], key: str) -> list[float]:
    return [float(word.partition("=")[2]) for job in made for word in job if word.startswith(f"{key}=")]


@pytest.mark.parametrize(
    "words",
    [
        ["seed=range(3)", "optimizer=sgd,adamw"],
        ["optimizer.lr=0.1", "seed=choice(5,4)", "model.width=range(8,17,4)", "+extra=a,'b c'"],
        ["optimizer=glob(pa*)", "seed=1"],
        ["model.widths=[3,2],[4]", "optimizer.lr=0.5,0.25"],
        ["seed=1,2", "seed=3,4"],  # the last one counts
        ["seed=3"],
    ],
    ids=" ".join,
)
def test_a_grid_has_the_jobs_of_hydras_own_sweeper(words: list[str], composer: Composer) -> None:
    (expected,) = BasicSweeper.split_arguments(composer.parse(words), max_batch_size=None)
    assert sorted(map(sorted, jobs(composer, words))) == sorted(map(sorted, expected))


def test_the_last_list_of_a_grid_is_walked_fastest(composer: Composer) -> None:
    made = jobs(composer, ["seed=1,2", "optimizer.lr=0.1", "model.width=8,9"])
    assert [job[1:] for job in made] == [[f"seed={s}", f"model.width={w}"] for s in (1, 2) for w in (8, 9)]


def test_zipped_lists_are_one_axis_of_the_grid(composer: Composer) -> None:
    words = ["optimizer.nu=1e-7,1e-6", "seed=1,2,3", "optimizer.gamma=5.0,10.0"]
    made = jobs(composer, words, zip=["optimizer.gamma", "optimizer.nu"])
    pairs = [("1e-07", "5.0"), ("1e-06", "10.0")]
    assert [tuple(sorted(job)) for job in made] == [
        (f"optimizer.gamma={g}", f"optimizer.nu={n}", f"seed={s}") for (n, g), s in itertools.product(pairs, (1, 2, 3))
    ]


@pytest.mark.parametrize("sampler", ["random", "sobol"])
def test_samples_lie_in_their_ranges_and_more_of_them_begin_with_the_same(sampler: str, composer: Composer) -> None:
    words = [LOG, "optimizer.lr=interval(0.1,0.4)", "model.width=int(interval(3,5))"]
    few = jobs(composer, words, sampler=sampler, n_samples=5, seed=3)
    many = jobs(composer, words, sampler=sampler, n_samples=33, seed=3)
    assert many[:5] == few
    assert jobs(composer, words, sampler=sampler, n_samples=5, seed=4) != few
    assert len(set(map(tuple, many))) == len(many) == 33
    assert all(1e-9 <= nu <= 1e-5 for nu in column(many, "optimizer.nu"))
    assert all(0.1 <= lr <= 0.4 for lr in column(many, "optimizer.lr"))
    assert set(column(many, "model.width")) == {3, 4, 5}
    for job in many:
        composer.config(job)


@pytest.mark.parametrize("sampler", ["random", "sobol"])
def test_samples_are_uniform_or_uniform_in_the_logarithm(sampler: str, composer: Composer) -> None:
    made = jobs(composer, [LOG, "optimizer.lr=interval(0.1,0.4)"], sampler=sampler, n_samples=256)
    logs = (np.log10(column(made, "optimizer.nu")) + 9) / 4
    plain = (np.array(column(made, "optimizer.lr")) - 0.1) / 0.3
    for u in (logs, plain):
        # Sure to fail for a mix-up of the scales: the two distributions are 0.8 apart.
        assert stats.kstest(u, "uniform").statistic < 0.12  # n = 256: exceeded once in 1,000 draws; this seed is fixed


def test_sobol_points_cover_the_square_evenly(composer: Composer) -> None:
    made = jobs(composer, [LOG, "optimizer.lr=interval(0.1,0.4)"], sampler="sobol", n_samples=64, seed=1)
    u = (np.log10(column(made, "optimizer.nu")) + 9) / 4
    v = (np.array(column(made, "optimizer.lr")) - 0.1) / 0.3
    cells = np.histogram2d(u, v, bins=8, range=[[0, 1], [0, 1]])[0]
    assert (cells == 1).all()  # a (0, 6, 2)-net: one point in each of 64 cells; random points leave 23 of them empty


def test_listed_values_stay_a_grid_of_which_each_combination_gets_the_same_samples(composer: Composer) -> None:
    made = jobs(composer, ["optimizer.gamma=5.0,10.0", LOG, "seed=range(2)"], sampler="sobol", n_samples=3)
    assert len(made) == 2 * 2 * 3
    by_combination = itertools.groupby(made, key=lambda job: job[:2])
    samples = {tuple(combination): [job[2:] for job in group] for combination, group in by_combination}
    assert len(samples) == 4
    assert len({str(s) for s in samples.values()}) == 1


def test_the_command_line_wins_over_what_a_preset_tries(composer: Composer) -> None:
    params = {"seed": "range(3)", "optimizer.lr": "0.1,0.2"}
    assert len(jobs(composer, [], params=params)) == 6
    assert jobs(composer, ["seed=7", "optimizer.lr=0.3,0.4"], params=params) == [
        ["seed=7", "optimizer.lr=0.3"],
        ["seed=7", "optimizer.lr=0.4"],
    ]


def test_whole_numbers_are_equally_likely_and_the_ends_belong_to_a_range() -> None:
    whole = Range("n", 2, 5, whole=True)
    counts = [sum(whole.at(u) == f"n={n}" for u in np.arange(0, 1, 1 / 400)) for n in range(2, 6)]
    assert counts == [100] * 4
    assert (whole.at(0.0), whole.at(1.0)) == ("n=2", "n=5")
    assert Range("x", 0.1, 0.7).at(1.0) == "x=0.7"
    assert Range("x", 1e-9, 1e-5, log=True).at(0.5) == "x=1e-07"
    odd = Range("x", 1 / 3, 2 / 3)
    assert (odd.at(0.0), odd.at(1.0)) == (f"x={1 / 3!r}", f"x={2 / 3!r}")  # rounding to six digits leaves no range
    widths = [int(Range("n", 1, 1000, log=True, whole=True).at(u)[2:]) for u in np.linspace(0, 1, 999)]
    assert (min(widths), max(widths)) == (1, 1000)
    assert np.median(widths) == pytest.approx(math.sqrt(1001), abs=1)


def test_corners_use_every_value_and_both_ends(composer: Composer) -> None:
    space = Space(
        ["optimizer=sgd,adamw,gd", LOG.replace("nu", "lr"), "seed=1,2"], SweepConfig(sampler="optuna"), composer
    )
    corners = space.corners()
    words = {word for job in corners for word in job}
    assert words == {
        *(f"optimizer={name}" for name in ("sgd", "adamw", "gd")),
        *("seed=1", "seed=2", "optimizer.lr=1e-09", "optimizer.lr=1e-05"),
    }
    assert len(corners) == 5


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ([LOG], {}, f"{LOG}: a range needs sweep.sampler=random, sobol or optuna, not grid"),
        (["seed=1,2"], {"sampler": "random"}, "sweep.sampler=random: needs a range, such as optimizer.nu="),
        (["seed=1"], {"sampler": "optuna"}, "sweep.sampler=optuna: needs a range or a list of values to choose from"),
        (["seed=range(0)"], {}, "seed=range(0): must have at least one value"),
        (["a=shuffle(range(1000000000))"], {}, "has too many values, must be <= 50,000"),
        (["a=range(0,1e9,0.5)"], {}, "a=range(0,1e9,0.5): has too many values, must be <= 50,000"),
        (["a=range(50000)", "b=1,2"], {}, "the sweep has 100,000 jobs, must be <= 50,000: list fewer values, or split"),
        (["a=interval(1,2)"], {"sampler": "sobol", "n_samples": 10**9}, "the sweep has 1,000,000,000 jobs, must be"),
        (["optimizer=glob(x*)"], {}, "optimizer=glob(x*): must have at least one value"),
        (["seed=range(1,2,0)"], {}, "seed=range(1,2,0): range() arg 3 must not be zero"),
        (["a=interval(2,1)"], {"sampler": "random"}, "a=interval(2,1): the ends of a range must be finite, and"),
        (["a=interval(1.5,1.5)"], {"sampler": "random"}, "a=interval(1.5,1.5): the ends of a range must be"),
        (["a=interval(0,inf)"], {"sampler": "random"}, "a=interval(0,inf): the ends of a range must be finite"),
        (["a=tag(log,interval(0,1))"], {"sampler": "random"}, "a=tag(log,interval(0,1)): a range on a logarithmic"),
        (["a=tag(lag,interval(0,1))"], {"sampler": "random"}, "unknown tag lag, must be log"),
        (["a=1,2", "b=1,2,3"], {"zip": ["a", "b"]}, "sweep.zip=[a,b]: paired lists must have the same number"),
        (["a=1,2", "b=1,2,3"], {"zip": ["a", "b"]}, "values: a has 2, b has 3"),
        (["a=1,2", "b=1"], {"zip": ["a", "b"]}, "sweep.zip=[a,b]: b must have a list of values"),
        (["a=1,2,3"], {"params": {"b": "[1"}}, "b=[1: must be KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(
    words: list[str], settings: dict[str, Any], message: str, composer: Composer
) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs(composer, words, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
