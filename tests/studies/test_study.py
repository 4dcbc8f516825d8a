"""burgersgd study: search, choice and tests of a study, resumable, and what it refuses."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from burgersgd.analysis.runs import load
from burgersgd.cli import main
from burgersgd.config import AdamWConfig, SgdConfig
from burgersgd.interruption import Interrupted
from burgersgd.schema import ConfigError
from burgersgd.studies import cells as cells_module
from burgersgd.studies.cells import FIRST_TEST_SEED, Cell, cells_of, spaces_word, sweep_of
from burgersgd.studies.command import space_given, space_of
from burgersgd.studies.config import StudyConfig, installed, read_study, studies
from burgersgd.studies.study import comparison_of, keep_spec, overview_table
from burgersgd.sweeps.sweep import Sweep
from tests.analysis.folders import write_run

INF = float("inf")
STUDY: dict[str, Any] = {
    "workloads": {"digits": ["dataset=digits"], "noisy": ["dataset=digits", "dataset.label_noise=0.1"]},
    "budgets": [100, 300],
    "schedules": ["constant", "cosine"],
    "optimizers": {"sgd": {"optimizer.lr": "interval(0.1,0.2)"}, "adamw": {"optimizer.lr": "interval(0.01,0.02)"}},
}


def a_cell(root: Path, **changed: Any) -> Cell:
    return cells_of(StudyConfig(**{**STUDY, **changed}), root)[0]


def write_tests(cell: Cell, errors: dict[str, list[float]]) -> None:
    for name, values in errors.items():
        for k, error in enumerate(values):
            settings = {"optimizer.name": name, "seed": FIRST_TEST_SEED + k}
            state = "diverged" if math.isinf(error) else "completed"
            write_run(cell.test_folder / f"{name}{k}", settings, state, test_error=error)


def test_every_workload_budget_and_schedule_is_a_cell_and_its_sweeps_are_equal_for_all(tmp_path: Path) -> None:
    cells = cells_of(StudyConfig(**STUDY, trials=3, tuning_seeds=2), tmp_path)
    assert len({cell.name for cell in cells}) == 8
    assert cells[3].name == "digits,300,cosine"
    search = sweep_of(cells[3].search_words()).jobs
    assert {name: sum(f"optimizer={name}" in job for job in search) for name in ("sgd", "adamw")} == {
        "sgd": 6,
        "adamw": 6,
    }
    assert all({"trainer.budget=300", "schedule=cosine"} <= set(job) for job in search)
    chosen = {"sgd": {"optimizer.lr": "0.15"}, "adamw": {"optimizer.lr": "0.012"}}
    test = sweep_of(cells[3].test_words(chosen, 11)).jobs
    seeds = [{word for word in job if word.startswith("seed=")} for job in test]
    assert set.union(*seeds) == {f"seed={1000 + k}" for k in range(11)}
    assert not set.union(*seeds) & {word for job in search for word in job}  # fresh
    assert sum("optimizer.lr=0.012" in job for job in test) == 11


def test_what_validates_best_on_average_is_chosen(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    errors = {("sgd", 0.1): [0.2, 0.1], ("sgd", 0.11): [0.12, 0.13], ("sgd", 0.12): [0.05, INF]}
    errors |= {("adamw", 0.015): [0.3, 0.4], ("adamw", 0.016): [0.5, 0.1]}
    for (name, lr), values in errors.items():
        for seed, error in enumerate(values):
            settings = {"optimizer.name": name, "optimizer.lr": lr, "seed": seed}
            state = "diverged" if math.isinf(error) else "completed"
            folder, test_error = cell.search_folder / f"{name}{lr}{seed}", 0.6 - min(error, 0.6)  # must not matter
            write_run(folder, settings, state, validation_error=error, test_error=test_error)
    assert cell.choose() == {"sgd": {"optimizer.lr": "0.11"}, "adamw": {"optimizer.lr": "0.016"}}


def test_the_largest_deviation_decides_on_one_number_of_seeds_for_all(tmp_path: Path) -> None:
    optimizers = STUDY["optimizers"] | {"langevin": {"optimizer.lr": "interval(0.1,0.2)"}}
    cell = a_cell(tmp_path, optimizers=optimizers, width=0.02, max_seeds=99)
    generator = np.random.default_rng(5)
    base = generator.normal(0.3, 0.05, 14)
    found = {"sgd": base, "adamw": base + generator.normal(0.01, 0.01, 14), "langevin": base - 0.02}
    found["langevin"] = found["langevin"] + generator.normal(0, 0.03, 14)
    write_tests(cell, {name: values.tolist() for name, values in found.items()})
    needed = {}
    for name in ("adamw", "langevin"):
        sd = np.std((found[name] - base)[:10], ddof=1)  # of the first stage alone
        needed[name] = max(10, math.ceil((2 * stats.t.ppf(0.975, 9) * sd / 0.02) ** 2))
    assert cell.n_seeds() == max(needed.values()) == needed["langevin"] > needed["adamw"]
    assert a_cell(tmp_path, optimizers=optimizers, width=0.02, max_seeds=12).n_seeds() == 12
    stein = cell.stein()["langevin"]
    assert stein.mean == pytest.approx(np.mean(found["langevin"] - base))
    assert (stein.n0, stein.n) == (10, 14)


def test_pairs_in_which_one_run_diverged_are_left_out(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    write_tests(cell, {"sgd": [0.1, 0.2, INF, 0.4], "adamw": [0.2, INF, INF, 0.7]})
    assert cell.differences(4)["adamw"] == pytest.approx([0.1, 0.3])
    assert cell.differences(1)["adamw"] == pytest.approx([0.1])


def test_a_workload_may_have_a_width_of_its_own(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    base = generator.normal(0.3, 0.05, 10)
    other = base + generator.normal(0, 0.02, 10)
    n = {}
    for width in (0.02, 0.05):
        cell = a_cell(tmp_path / str(width), width=0.02, widths={} if width == 0.02 else {"digits": 0.05}, max_seeds=99)
        write_tests(cell, {"sgd": base.tolist(), "adamw": other.tolist()})
        n[width] = cell.n_seeds()
        sd = np.std(other - base, ddof=1)
        assert n[width] == max(10, math.ceil((2 * stats.t.ppf(0.975, 9) * sd / width) ** 2))
    assert n[0.02] > n[0.05]


def test_the_tests_may_train_on_what_the_search_validated_with(tmp_path: Path) -> None:
    cell = a_cell(tmp_path, final=["dataset.validation_fraction=0"])
    chosen = {"sgd": {"optimizer.lr": "0.15"}, "adamw": {"optimizer.lr": "0.012"}}
    assert all("dataset.validation_fraction=0" in job for job in sweep_of(cell.test_words(chosen, 10)).jobs)
    assert not any("dataset.validation_fraction=0" in job for job in sweep_of(cell.search_words()).jobs)


def test_a_workload_whose_package_is_missing_is_left_out_and_named(tmp_path: Path) -> None:
    told: list[str] = []
    study = StudyConfig(**STUDY, needs={"noisy": "a_package_of_nobody", "digits": "numpy"}, widths={"noisy": 0.1})
    left = installed(study, told.append)
    assert list(left.workloads) == ["digits"]
    assert (left.needs, left.widths) == ({"digits": "numpy"}, {})
    assert told == ["noisy: left out, because it needs the package a_package_of_nobody (pip install '.[data]')"]
    with pytest.raises(ConfigError, match=r"study.workloads=.*: must have at least one entry"):
        installed(StudyConfig(**STUDY, needs=dict.fromkeys(STUDY["workloads"], "a_package_of_nobody")), told.append)


def test_a_study_recorded_before_a_key_existed_can_be_resumed(tmp_path: Path) -> None:
    study = StudyConfig(**STUDY)
    keep_spec(study, tmp_path)
    spec = yaml.safe_load((tmp_path / "study.yaml").read_text())
    del spec["final"], spec["widths"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec))
    keep_spec(study, tmp_path)
    assert "final" in (tmp_path / "study.yaml").read_text()
    with pytest.raises(ConfigError, match=r"the folder holds a study with different settings \(final\)"):
        keep_spec(StudyConfig(**STUDY, final=["dataset.validation_fraction=0"]), tmp_path)


def test_the_overview_has_means_paired_differences_and_stars_by_holm(tmp_path: Path) -> None:
    """Two cells: adamw is clearly better in the first, and in the second once in a while."""
    study = StudyConfig(**{**STUDY, "budgets": [300], "schedules": ["constant"]})
    cells = cells_of(study, tmp_path)
    generator = np.random.default_rng(8)
    errors = {}
    for cell, shift, noise in zip(cells, (-0.05, 0.001), (0.002, 0.03), strict=True):
        base = generator.normal(0.3, 0.01, 12)
        errors[cell.name] = base, base + shift + generator.normal(0, noise, 12)
        for name, values in zip(("sgd", "adamw"), errors[cell.name], strict=True):
            for k, error in enumerate(values):
                settings = {"optimizer.name": name, "seed": 1000 + k, "trainer.budget": 300}
                settings["dataset.label_noise"] = 0.1 if cell.workload == "noisy" else 0.0
                learnt: dict[str, Any] = {
                    "no_better_than_guessing": (cell.workload, name) == ("noisy", "sgd") and k in (3, 7)
                }
                write_run(cell.test_folder / f"{name}{k}", settings, test_error=float(error), **learnt)
    table = overview_table(comparison_of(load(tmp_path / "test"), study), cells)
    assert table.columns == ("workload, budget, schedule", "sgd", "adamw", "n")
    assert "Holm over all 2" in table.title
    stars = {}
    assert [row[0] for row in table.rows[:-1]] == [cell.name for cell in cells]
    assert table.rows[-1] == ("with a star: better, worse (of 2)", "", "1, 0", "")
    for row in table.rows[:-1]:
        base, other = errors[row[0]]
        mean = (other - base).mean()
        stars[row[0]] = row[2].endswith("*)")
        assert row[1] == f"{100 * base.mean():.2f}" + (", 2 guessing" if row[0].startswith("noisy") else "")
        assert row[2].startswith(f"{100 * other.mean():.2f} ({100 * mean:+.2f}".replace("-", "\N{MINUS SIGN}")) or row[
            2
        ].startswith(f"{100 * other.mean():.2f} ({100 * mean:+.2f}")
        assert row[3] == "12"
    p = [stats.ttest_rel(other, base).pvalue for base, other in errors.values()]
    assert (2 * min(p) < 0.05, max(p) < 0.05) == (True, False)
    assert list(stars.values()) == [True, False]


def test_spaces_are_written_as_overrides_that_are_read_back() -> None:
    spaces = {"sgd": {"optimizer.lr": "tag(log, interval(0.01, 1))"}, "langevin": {"optimizer.lr": "interval(1,2)"}}
    settings = Sweep([spaces_word(spaces), "sweep.sampler=random", "sweep.n_samples=1"]).settings
    assert settings.spaces == spaces
    assert Sweep(["dataset=digits", spaces_word({"sgd": {"optimizer.lr": "0.1"}})]).jobs


@pytest.mark.parametrize("name", studies())
def test_the_sweeps_of_the_studies_that_ship_can_be_composed(name: str, tmp_path: Path) -> None:
    study = read_study(name, ["trials=2"])
    assert study.question.endswith("?")
    cells = cells_of(study, tmp_path)
    assert len(sweep_of(cells[0].search_words()).jobs) == len(study.optimizers) * 2 * study.tuning_seeds
    assert len(cells) == len(study.workloads) * len(study.budgets) * len(study.schedules)
    assert read_study(name, quick=True).budgets < study.budgets


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trails=3"], "study.trails: no such key; did you mean trials?"),
        (["trials"], "trials: must be KEY=VALUE"),
        (["n0=5"], "study.n0=5: must be >= 10"),
        (["max_seeds=10", "n0=12"], "study.max_seeds=10: must be >= study.n0 = 12"),
        (["baseline=gd"], "study.baseline=gd: must be one of local_entropy, sgd, adamw"),
        (["width=0"], "study.width=0.*: must be > 0"),
        (["schedules=[cosin]"], "study.schedules: cosin: must be one of constant"),
        (["budgets=[]"], "study.budgets=.*: must have at least one entry"),
        (["widths={moons: 1}"], "study.widths=.*: moons must be one of digits, noisy_digits"),
        (["widths={digits: -1}"], "study.widths.digits=-1.*: must be > 0"),
        (["needs={moons: numpy}"], "study.needs=.*: moons must be one of digits, noisy_digits"),
        (["final=[model.widht=3]"], "model.widht"),
        (["workloads={a/b: [dataset=digits]}"], "study.workloads.a/b: must consist of letters, digits"),
        (["optimizers={sgd: {optimizer.lr: 0.1}}"], "study.optimizers: must have at least two entries"),
        (
            ["optimizers={sgd: {optimizer.lr: 'interval(1,2)'}, adamw: {optimizer.gamma: 'interval(1,2)'}}"],
            "has no key",
        ),
        (["common=[model.widht=3]"], "model.widht"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "small", "--quick", *words]) == 2
    error = capsys.readouterr().err
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(error)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_numbers_of_the_command_line_may_have_exponents() -> None:
    study = read_study("small", ["width=1e-3", "trials=8", "optimizers={sgd: {optimizer.lr: 0.1}, adamw: {}}"])
    assert (study.width, study.trials) == (1e-3, 8)
    assert study.optimizers == {"sgd": {"optimizer.lr": "0.1"}, "adamw": {}}
    with pytest.raises(
        ConfigError, match="study smal: must be a YAML file or one of bench, mnist1d, small, valley; did you mean small"
    ):
        read_study("smal")


def test_a_quick_study_ends_with_its_report_and_is_resumed_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["study", "small", "--quick", "-q"]
    assert main(command) == 0
    out = capsys.readouterr().out
    root = tmp_path / "outputs" / "studies" / "small-quick"
    search, test = load(root / "search"), load(root / "test")
    tried = {name: [r for r in search if r.settings["optimizer.name"] == name] for name in ("sgd", "local_entropy")}
    assert {len(runs) for runs in tried.values()} == {2 * 2 * 2}  # trials, seeds, workloads
    assert all(60 - run.settings.get("optimizer.inner_steps", 1) < run.budget <= 60 for run in search)  # whole cycles
    assert not {run.seed for run in search} & {run.seed for run in test}
    errors: dict[str, dict[int, float]] = {}
    for run in test.where({"dataset.label_noise": 0.2}):
        errors.setdefault(run.settings["optimizer.name"], {})[run.seed] = run.status["test_error"]
    n = {len(by_seed) for by_seed in errors.values()}
    assert len(n) == 1  # one N for all arms
    differences = np.array([errors["adamw"][seed] - errors["sgd"][seed] for seed in sorted(errors["sgd"])])
    (line,) = [line for line in out.splitlines() if line.startswith("noisy_digits") and " adamw " in line]
    assert f"{100 * differences.mean():+.2f}" in line.replace("\N{MINUS SIGN}", "-")
    half = stats.t.ppf(0.975, 9) * np.std(differences[:10], ddof=1) / math.sqrt(len(differences))
    assert f"{100 * 2 * half:.2f}" in line
    for file, expected in (
        ("report.html", "Stein"),
        ("summary.md", "Chosen on validation, out of 2 trials of 2 seeds"),
    ):
        assert expected in (root / file).read_text()
    page = (root / "report.html").read_text()
    assert page.index("<h1>Does local entropy beat") < page.index("Mean test error") < page.index("minus sgd</th>")
    times = {path: path.stat().st_mtime_ns for path in root.rglob("metrics.csv")}
    lost = test[0].folder
    shutil.rmtree(lost)
    (root / "report.html").unlink()
    assert main(command) == 0
    assert capsys.readouterr().out == out
    again = {path: path.stat().st_mtime_ns for path in root.rglob("metrics.csv")}
    assert {path for path in times if times[path] != again[path]} == {lost / "metrics.csv"}
    assert (root / "report.html").exists()
    assert main([*command, "trials=3"]) == 2
    assert "the folder holds a study with different settings (trials); choose another --name" in capsys.readouterr().err


def test_a_job_that_fails_stops_the_study_before_it_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {
        "workloads": {"d": ["dataset=digits", "dataset.train_size=100", "model.width=4"]},
        "budgets": [20],
        "optimizers": {"sgd": {"optimizer.lr": "interval(0.1,0.2)"}, "adamw": {"optimizer.lr": "interval(0.01,0.02)"}},
        "trials": 1,
        "tuning_seeds": 1,
    }
    Path("own.yaml").write_text(yaml.safe_dump(own))
    original = Sweep.run_here

    def blocked(self: Sweep, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.begin(folder)
        self.place(self.jobs[0]).write_text("a file where the run folder should be")
        original(self, folder)

    monkeypatch.setattr(cells_module.Sweep, "run_here", blocked)
    assert main(["study", "own.yaml", "-q"]) == 1
    assert "jobs failed; see burgersgd status" in capsys.readouterr().err
    assert not Path("outputs/studies/own/test").exists()


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["bench", "mnist1d", "small", "valley"]


def test_an_interrupted_study_prints_how_to_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(self: Sweep, folder: Path) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(cells_module.Sweep, "run_here", interrupted)
    assert main(["study", "small", "--quick", "-q", "--name", "mine"]) == 75
    assert "resume with: burgersgd study small --quick -q --name mine" in capsys.readouterr().err
    assert main(["study", "small", "--quick", "--name", "a/b"]) == 2
    assert "--name a/b: must be the name of a folder" in capsys.readouterr().err


OWN = """
from dataclasses import dataclass
from burgersgd.config import SgdConfig
from burgersgd.schema import named


@dataclass
class MineConfig(SgdConfig):
    \"\"\"SGD by another name.\"\"\"

    name: str = named("mine_of_bench")
"""


def test_a_new_optimizer_is_compared_with_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine_of_bench.py").write_text(OWN)
    command = ["bench", "mine_of_bench:MineConfig", "--quick", "-q", "--space", "{optimizer.lr: 'interval(0.2,0.3)'}"]
    others = "{sgd: {optimizer.lr: 'interval(0.1,0.2)'}, adamw: {optimizer.lr: 'interval(0.01,0.02)'}}"
    assert main([*command, f"optimizers={others}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    overview, *stein = [line.split() for line in lines if line.startswith("diabetes,40,cosine")]
    assert {words[1] for words in stein} == {"mine_of_bench", "adamw"}
    assert len(overview) > 4
    runs = load("outputs/studies/bench-mine_of_bench-quick/search").where({"optimizer.name": "mine_of_bench"})
    assert all(0.2 <= run.settings["optimizer.lr"] <= 0.3 for run in runs)
    assert {run.settings["dataset.name"] for run in runs} == {"digits", "diabetes"}
    assert main(["bench", "sdg"]) == 2
    assert "sdg: must be PACKAGE:CLASS or one of" in capsys.readouterr().err


def test_an_optimizer_without_a_space_is_searched_around_its_own_rate() -> None:
    lr = SgdConfig().default_lr(1)
    assert space_of(SgdConfig) == {
        "optimizer.lr": f"tag(log, interval({lr / 300:.3g}, {3 * lr:.3g}))",
        "optimizer.momentum": "interval(0, 0.95)",
        "optimizer.weight_decay": "tag(log, interval(1e-6, 1e-2))",
    }
    assert "optimizer.momentum" not in space_of(AdamWConfig)
    with pytest.raises(ConfigError, match=r"--space \[\]: must be"):
        space_given("[]")
