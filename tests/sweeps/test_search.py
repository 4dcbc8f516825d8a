"""The search by Optuna: batches of trials, the same whenever it is interrupted, and no trial twice."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn

from burgersgd import api
from burgersgd.cli import main
from burgersgd.config import ConfigError, SweepConfig
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.reading import read_config
from burgersgd.recording.run_folder import RunInUseError
from burgersgd.sweeps import chunks
from burgersgd.sweeps.compose import Composer
from burgersgd.sweeps.planning import LocalTrainer
from burgersgd.sweeps.space import Axis, Space, Words
from burgersgd.sweeps.sweep import Sweep
from tests.sweeps.test_resumable import claimed_elsewhere
from tests.sweeps.test_sweep import fleets

if importlib.util.find_spec("optuna") is None:
    pytest.skip("Optuna is not installed", allow_module_level=True)

from optuna import create_study, get_all_study_names, load_study, samplers
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial, TrialState

from burgersgd.sweeps import search as search_module
from burgersgd.sweeps.search import Search

LR = "optimizer.lr=tag(log, interval(1e-4,1))"
WORDS = ["model.width=8", LR, "optimizer=sgd,adamw", "trainer.batch_size=int(interval(8,64))"]


def space(words: list[str] = WORDS, **settings: Any) -> Space:
    return Space(words, SweepConfig(**({"sampler": "optuna", "n_samples": 11, "batch": 4} | settings)), Composer())


def value(words: Words, key: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


def loss(words: Words) -> float:
    """A bowl with its bottom at lr = 0.01 of adamw."""
    return (math.log10(float(value(words, "optimizer.lr"))) + 2) ** 2 + (value(words, "optimizer") == "sgd")


def all_of(search: Search) -> list[list[Words]]:
    """Go through the search and return the jobs of its trials in their order."""
    made = {}
    while trials := search.ask():
        made |= trials
        for number, jobs in trials.items():
            search.tell(number, [loss(job) for job in jobs])
    return [made[number] for number in sorted(made)]


def trials(folder: Path) -> list[Any]:
    return load_study(study_name=None, storage=f"sqlite:///{folder}/optuna.db").trials  # the only one in it


def test_a_batch_is_asked_at_once_and_all_of_them_are_as_many_as_wanted() -> None:
    search = Search(space(), None)
    sizes = []
    while batch := search.ask():
        sizes.append(len(batch))
        for number, jobs in batch.items():
            ((words),) = jobs
            assert words[0] == "model.width=8"
            assert 1e-4 <= float(value(words, "optimizer.lr")) <= 1
            assert value(words, "optimizer") in ("sgd", "adamw")
            assert 8 <= int(value(words, "trainer.batch_size")) <= 64
            search.tell(number, [loss(words)])
    assert sizes == [4, 4, 3]
    assert search.n_left == 0


def test_the_search_finds_the_bottom_of_a_bowl() -> None:
    losses = [loss(words) for (words,) in all_of(Search(space(n_samples=48, batch=8), None))]
    assert min(losses) < 0.01  # lr within 26 %; of the 4 decades these are 5 %
    first, last = sum(losses[:16]) / 16, sum(losses[-16:]) / 16
    assert last < first / 2


def test_proposals_depend_on_the_seed_alone_and_more_of_them_begin_with_the_same() -> None:
    few, many = all_of(Search(space(n_samples=8), None)), all_of(Search(space(), None))
    assert many[:8] == few
    assert all_of(Search(space(n_samples=8, seed=1), None)) != few


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed", ["while asking", "while choosing", "while training", "while telling", "between batches"]
)
def test_an_interrupted_search_is_resumed_as_if_uninterrupted(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "STARTUP", 1)  # all but the first batch depend on what was told before
    undisturbed = all_of(Search(space(), None))
    search = Search(space(), tmp_path)
    for number, jobs in search.ask().items():
        search.tell(number, [loss(jobs[0])])
    if killed == "while asking":
        add, asked = search._study.add_trial, []

        def dying(*arguments: Any) -> Any:
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(add(*arguments))

        monkeypatch.setattr(search._study, "add_trial", dying)
        with pytest.raises(KeyboardInterrupt):
            search.ask()
    elif killed == "while choosing":  # between the first and the second choice of a trial
        suggest, chosen = Trial._suggest, []

        def dying_later(*arguments: Any) -> Any:
            chosen.append(suggest(*arguments))
            if len(chosen) == 4:
                raise KeyboardInterrupt
            return chosen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(Trial, "_suggest", dying_later)
            with pytest.raises(KeyboardInterrupt):
                search.ask()
    elif killed != "between batches":
        batch = search.ask()
        if killed == "while telling":
            for number in list(batch)[:3]:
                search.tell(number, [loss(batch[number][0])])
    again = Search(space(), tmp_path)
    all_of(again)
    (done,) = [[[words] for words in Search(space(), tmp_path).finished_jobs()]]
    assert done == undisturbed
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.COMPLETE] * 11


def test_a_longer_search_continues_a_shorter_one(tmp_path: Path) -> None:
    all_of(Search(space(n_samples=4), tmp_path))
    more = Search(space(n_samples=6), tmp_path)
    assert more.n_left == 2
    assert sorted(more.ask()) == [4, 5]
    numbers = [trial.number for trial in trials(tmp_path)]
    assert numbers == list(range(6))


def test_diverged_is_infinite_and_failed_is_no_value(tmp_path: Path) -> None:
    search = Search(space([*WORDS, "seed=1,2"], n_samples=4), tmp_path)
    ends: list[list[float | None]] = [[0.5, 0.25], [math.inf, 0.25], [None, 0.25], [0.5, 0.5]]
    batch = search.ask()
    assert [[value(words, "seed") for words in jobs] for jobs in batch.values()] == [["1", "2"]] * 4
    for number in batch:
        search.tell(number, ends[number], pruned_at=30 if number == 3 else None)
    told = trials(tmp_path)
    assert [trial.state.name for trial in told] == ["COMPLETE", "COMPLETE", "RUNNING", "PRUNED"]
    assert [trial.value for trial in told[:2]] == [0.375, math.inf]
    assert told[3].intermediate_values == {30: 0.5}
    assert search.n_left == 0
    assert search.ask() == {}
    assert list(Search(space([*WORDS, "seed=1,2"], n_samples=4), tmp_path).ask()) == [2]  # tried again


def test_a_trial_counts_by_the_mean_of_its_seeds_pruned_or_not(tmp_path: Path) -> None:
    search = Search(space([*WORDS, "seed=1,2,3"], n_samples=2, batch=2), tmp_path)
    for number in search.ask():
        search.tell(number, [0.75, 0.125, 0.25], pruned_at=30 if number == 1 else None)
    told = trials(tmp_path)
    assert told[0].value == 0.375  # the median is 0.25
    assert told[1].intermediate_values == {30: 0.375}


def test_a_trial_was_stopped_when_the_last_of_its_pruned_seeds_was(tmp_path: Path) -> None:
    ends = {"1": ("pruned", 10, 0.75), "2": ("completed", 40, 0.125), "3": ("pruned", 30, 0.25)}

    def trained(made: list[chunks.Chunk], progress: SweepProgress) -> Iterator[tuple[chunks.Chunk, list[Any]]]:
        for chunk in made:
            told = [(job.folder, *ends[value([*job.overrides], "seed")]) for job in chunk]
            yield chunk, [chunks.Outcome(state, folder, e, evaluations=n) for folder, state, n, e in told]  # pyright: ignore

    def launch(jobs: list[Words], first: int) -> list[JobReturn]:
        sweep.train(jobs, tmp_path / "s", trained)
        return [JobReturn()] * len(jobs)

    words = [*WORDS, "seed=1,2,3", "sweep.sampler=optuna", "sweep.n_samples=1", "sweep.name=s"]
    sweep = Sweep([*words, f"output_root={tmp_path}"])
    sweep.run(launch, tmp_path / "s")
    (trial,) = trials(tmp_path / "s")
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {30: 0.375}


@pytest.mark.parametrize(("batch", "startup"), [(4, 10), (16, 16)])
def test_the_estimator_keeps_the_trials_of_a_batch_apart_and_starts_at_random(
    batch: int, startup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    original = samplers.TPESampler

    def counting(**arguments: Any) -> Any:
        made.extend([arguments] if arguments else [])  # a study makes one for itself
        return original(**arguments)

    monkeypatch.setattr(samplers, "TPESampler", counting)
    assert len(Search(space(batch=batch, n_samples=20), None).ask()) == batch
    assert len({arguments["seed"] for arguments in made}) == batch
    assert {(a["constant_liar"], a["n_startup_trials"]) for a in made} == {(True, startup)}


def test_seeds_repeat_a_trial_and_zipped_lists_are_one_choice() -> None:
    words = [LR, "seed=range(3)", "optimizer.momentum=0,0.5", "optimizer.nesterov=false,true"]
    zipped = ["optimizer.momentum", "optimizer.nesterov"]
    search = Search(space(words, n_samples=4, zip=zipped), None)
    assert search.n_left == 12
    for jobs in search.ask().values():
        assert [job[-1] for job in jobs] == ["seed=0", "seed=1", "seed=2"]
        assert len({tuple(job[:-1]) for job in jobs}) == 1
        pair = {word for word in jobs[0] if word.startswith(("optimizer.momentum", "optimizer.nesterov"))}
        assert pair in (
            {"optimizer.momentum=0", "optimizer.nesterov=False"},
            {"optimizer.momentum=0.5", "optimizer.nesterov=True"},
        )


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["model.width=9", *WORDS[1:]], {}, "different settings (model.width=8); choose another sweep.name"),
        ([*WORDS, "loss=logistic"], {}, "different settings (without loss=logistic); choose another"),
        (
            [*WORDS[:2], "optimizer=sgd,gd", WORDS[3]],
            {},
            "different settings (optimizer=sgd adamw); choose another sweep.name",
        ),
        (
            WORDS,
            {"objective": "best"},
            "sweep.name=s: the study was created with different settings (sweep.objective=last)",
        ),
        ([*WORDS[:1], "optimizer.lr=interval(0,1)", *WORDS[2:]], {}, "sweep.name=s: the study has different ranges ("),
        ([*WORDS, "output_root=elsewhere"], {}, None),
    ],
)
def test_a_study_of_other_settings_is_not_gone_on_with(
    words: list[str], settings: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    search = Search(space(name="s", n_samples=4), tmp_path)
    assert len(search.ask()) == 4
    other = space(words, name="s", n_samples=8, batch=8, **settings)
    if message is None:
        assert len(Search(other, tmp_path).ask()) == 8
        return
    with pytest.raises(ConfigError) as caught:
        Search(other, tmp_path).ask()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TRAINED = ["trainer.budget=40", "model.width=8", "trainer.compile=off", "optimizer=sgd", "optimizer.lr=interval(0.1,1)"]
SEARCH = ["train", "--multirun", *TRAINED, "sweep.sampler=optuna", "sweep.n_samples=6", "sweep.batch=2"]
FOLDER = Path("outputs", "multirun", "s")


def error_of(code: int, capsys: pytest.CaptureFixture[str], expected: int = 2) -> tuple[str, str]:
    """Return what a command that was refused has printed, and its error of one line, without the progress."""
    assert code == expected
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if "grad/s" not in line and "runs   0%" not in line]
    assert len(errors) == 1, errors
    return shown.out, errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble", ["damaged", *(pytest.param(name, marks=pytest.mark.slow) for name in ("locked", "removed"))]
)
def test_a_study_whose_file_fails_in_mid_search_is_one_line_and_nothing_is_lost(
    trouble: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*SEARCH, "sweep.name=undisturbed"]) == 0
    capsys.readouterr()
    sizes = fleets(monkeypatch)
    file, train_jobs = FOLDER / "optuna.db", chunks.train_jobs
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:

        def troubled(*arguments: Any, **words: Any) -> Any:
            results = train_jobs(*arguments, **words)
            if len(sizes) == 2:
                if trouble == "damaged":
                    with open(file, "r+b") as stream:
                        stream.seek(4096)
                        stream.write(bytes(file.stat().st_size))
                elif trouble == "removed":
                    file.unlink()
                else:
                    other = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
                    other.execute("BEGIN EXCLUSIVE")
            return results

        patch.setattr(chunks, "train_jobs", troubled)
        out, error = error_of(main([*SEARCH, "sweep.name=s"]), capsys)
        assert "jobs                  4: 4 completed" in out
        assert "optuna.db: " in error
        assert "trained runs are kept" in error
    if trouble != "locked":
        file.unlink(missing_ok=True)
    sizes.clear()
    assert main([*SEARCH, "sweep.name=s"]) == 0
    assert sizes == [2]
    names = [{path.name for path in FOLDER.with_name(name).iterdir() if path.is_dir()} for name in ("s", "undisturbed")]
    assert names[0] == names[1]


def test_a_study_of_a_later_optuna_is_one_line(tmp_path: Path) -> None:
    Search(space(), tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "optuna.db")) as study:
        study.execute("UPDATE alembic_version SET version_num = 'v9.0.0'")
        study.execute("UPDATE version_info SET schema_version = 99")
        study.commit()
    with pytest.raises(ConfigError, match=r"sqlite:///.*optuna\.db: cannot be used \(.*no longer compatible.*schema"):
        Search(space(), tmp_path)


def test_two_processes_do_not_run_the_same_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH, "sweep.name=s", "sweep.n_samples=2"]) == 0
    capsys.readouterr()
    with claimed_elsewhere(FOLDER / "optuna.db"):
        _, error = error_of(main([*SEARCH, "sweep.name=s"]), capsys)
        assert "optuna.db: another process is running this search; wait until it ends" in error
    assert main([*SEARCH, "sweep.name=s"]) == 0  # a dead process holds nothing


@pytest.mark.slow
def test_a_search_waits_for_no_job_of_another_process_and_forgets_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH, "sweep.name=s"]) == 0
    last = FOLDER / json.loads((FOLDER / "jobs.jsonl").read_text().splitlines()[-1])["name"]
    shutil.rmtree(last)
    with contextlib.closing(sqlite3.connect(FOLDER / "optuna.db")) as study:
        study.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 5")
        study.execute("DELETE FROM trial_values WHERE trial_id = 6")
        study.commit()
    capsys.readouterr()
    with claimed_elsewhere(last):
        out, error = error_of(main([*SEARCH, "sweep.name=s"]), capsys, expected=75)
        assert "1 trained by another process" in out
        assert ": another process is training this job; the search needs its result" in error
    assert main([*SEARCH, "sweep.name=s"]) == 0
    assert [trial.state for trial in trials(FOLDER)] == [TrialState.COMPLETE] * 6


@pytest.mark.slow
def test_workers_are_kept_for_all_batches_of_a_search_and_then_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[LocalTrainer] = []
    used: set[LocalTrainer] = set()
    train = LocalTrainer.train
    monkeypatch.setattr(LocalTrainer, "train", lambda self, *a: used.add(self) or train(self, *a))
    monkeypatch.setattr(LocalTrainer, "close", lambda self: ended.append(self))
    assert main([*SEARCH, "sweep.name=s"]) == 0
    assert [*used] == ended
    assert main(["train", "--multirun", *TRAINED[:-1], "seed=1,2", "sweep.name=grid"]) == 0
    assert len(ended) == 2


def test_the_bar_of_a_search_expects_the_evaluations_of_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[tuple[int, int]] = []
    original = SweepProgress.expect
    monkeypatch.setattr(SweepProgress, "expect", lambda self, *known: expected.append(known) or original(self, *known))
    assert main([*SEARCH, "sweep.name=s"]) == 0
    (budget,) = {evaluations / runs for runs, evaluations in expected}
    assert budget == 40
    assert expected[0][0] == 6  # all trials, of which the first batch is known


def test_a_search_trains_a_fleet_per_batch_and_is_resumed_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer.budget=40", "model.width=8", "trainer.compile=off", "optimizer=sgd", "seed=1,2"]
    search = ["sweep.sampler=optuna", "optimizer.lr=tag(log, interval(0.01,1e300))", "sweep.batch=2", "sweep.name=s"]
    assert main(["train", "--multirun", *words, *search, "sweep.n_samples=3"]) in (0, 3)  # 3: all diverged
    assert "6/6 runs 100%" in capsys.readouterr().err
    folder = tmp_path / "outputs" / "multirun" / "s"
    before = trials(folder)
    assert main(["train", "--multirun", *words, *search, "sweep.n_samples=4"]) in (0, 3)
    shown = capsys.readouterr()
    assert "2/2 runs 100%" in shown.err
    assert "jobs                  8: " in shown.out  # of the whole search
    after = trials(folder)
    assert [trial.params for trial in after[:3]] == [trial.params for trial in before]
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 4
    assert not any(math.isnan(trial.value) for trial in after)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 8
    assert main(["train", "--multirun", *words, "model.depth=1", *search]) == 2
    assert "different settings (without model.depth=1); choose another sweep.name" in capsys.readouterr().err


def test_a_trial_that_another_process_trains_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer.budget=40", "model.width=8", "trainer.compile=off", "optimizer=sgd"]
    words += ["sweep.sampler=optuna", LR, "sweep.batch=2", "sweep.n_samples=4", "sweep.name=s"]
    original, folder = api.has_contents, tmp_path / "outputs" / "multirun" / "s"
    met: list[Path] = []

    def has_contents(path: Path) -> bool:
        met.append(path)
        if path == met[0]:
            raise RunInUseError(f"{path}: another process is training this run")
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(api, "has_contents", has_contents)
        assert main(["train", "--multirun", *words]) == 75
    shown = capsys.readouterr()
    assert "2: 1 completed, 1 trained by another process" in " ".join(shown.out.split())
    assert ": another process is training this job; the search needs its result" in shown.err
    assert sorted(trial.state.name for trial in trials(folder)) == ["COMPLETE", "RUNNING"]
    assert main(["train", "--multirun", *words]) == 0
    assert [trial.state for trial in trials(folder)] == [TrialState.COMPLETE] * 4


@pytest.mark.slow
def test_plain_optuna_reads_what_was_trained_from_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trainer.budget=40", "model.width=8", "trainer.compile=off", "optimizer=sgd", "seed=1,2"]
    words += ["optimizer.lr=tag(log, interval(0.0123456789,0.5))", "trainer.batch_size=int(interval(20,60))"]
    words += [
        "model.depth=1,2",
        "optimizer.momentum=0,0.55",
        "optimizer.nesterov=false,true",
        "loss=auto,'cross_entropy'",
    ]
    words += [
        "sweep.zip=[optimizer.momentum,optimizer.nesterov]",
        "schedule.warmup=0.25,0.5",
        "trainer.clip_norm=null,3",
    ]
    words += ["sweep.sampler=optuna", "sweep.n_samples=5", "sweep.batch=2", "sweep.name=s"]
    assert main(["train", "-m", *words]) == 0
    storage = f"sqlite:///{FOLDER}/optuna.db"
    assert get_all_study_names(storage) == ["s"]
    study = load_study(study_name="s", storage=storage)
    assert len(study.trials) == 5
    assert study.trials[0].distributions["model.depth"] == CategoricalDistribution((1, 2))
    assert study.trials[0].distributions["schedule.warmup"] == CategoricalDistribution((0.25, 0.5))
    assert study.trials[0].distributions["trainer.clip_norm"] == CategoricalDistribution((None, 3))
    assert study.trials[0].distributions["loss"] == CategoricalDistribution(("auto", "cross_entropy"))
    zipped = study.trials[0].distributions["optimizer.momentum,optimizer.nesterov"]
    assert zipped == CategoricalDistribution(("0,False", "0.55,True"))
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        seeds = set()
        for name in trial.user_attrs["folders"]:
            config = read_config(FOLDER / name)
            seeds.add(config["seed"])
            assert config["optimizer"]["lr"] == trial.params["optimizer.lr"]  # to the last digit
            assert config["trainer"]["batch_size"] == trial.params["trainer.batch_size"]
            assert config["model"]["depth"] == trial.params["model.depth"]
            assert config["trainer"]["clip_norm"] == trial.params["trainer.clip_norm"]
            assert config["schedule"]["warmup"] == trial.params["schedule.warmup"]
            together = f"{config['optimizer']['momentum']:g},{config['optimizer']['nesterov']}"
            assert together == trial.params["optimizer.momentum,optimizer.nesterov"]
        assert seeds == {1, 2}


def test_choices_that_optuna_takes_for_one_another_are_words() -> None:
    assert [*search_module._typed_labels(Axis(("a",), [("a=1",), ("a=True",)]))] == ["1", "True"]
    assert [*search_module._typed_labels(Axis(("a",), [("a=[1,2]",), ("a=3",)]))] == ["[1,2]", 3]
    assert [*search_module._typed_labels(Axis(("a",), [("a='1,5'",), ("a=1e-4",), ("a=null",)]))] == ["1,5", 1e-4, None]


def test_a_search_of_version_0_1_0_is_resumed_in_its_own_format(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    old = create_study(study_name="sweep", storage=storage)
    old.set_user_attr("of", ["model.width=8", "optimizer=sgd adamw", "sweep.objective=last"])
    new = Search(space(n_samples=4, name="s"), tmp_path)
    batch = new.ask()
    (stored,) = (trial for trial in trials(tmp_path) if trial.number == 0)
    assert len(batch) == 4
    assert stored.distributions["optimizer"] == CategoricalDistribution(("sgd", "adamw"))
    assert stored.params["optimizer.lr"] != float(value(batch[0][0], "optimizer.lr"))  # as drawn, to 16 digits
    assert stored.params["optimizer.lr"] == pytest.approx(float(value(batch[0][0], "optimizer.lr")), rel=1e-5)


@pytest.mark.parametrize("spent", [1, 3])
def test_a_study_is_not_continued_with_other_ranges(
    spent: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished one proposes nothing, so that its old results would be shown for the new ranges."""
    words = ["train", "--multirun", "optimizer=sgd", "model.width=5", "trainer.budget=20", "trainer.compile=off"]
    words += ["sweep.sampler=optuna", "sweep.name=s", "sweep.batch=1"]
    assert main([*words, f"sweep.n_samples={spent}", "optimizer.lr=interval(0.01,0.3)"]) == 0
    capsys.readouterr()
    for other in ("interval(0.01,0.2)", "tag(log,interval(0.01,0.3))"):
        assert main([*words, "sweep.n_samples=3", f"optimizer.lr={other}"]) == 2
        shown = capsys.readouterr().err
        assert "sweep.name=s: the study has different ranges (optimizer.lr 0.01 to 0.3)" in shown
    assert main([*words, "sweep.n_samples=3", "optimizer.lr=interval(0.01,0.3)"]) == 0


def test_without_optuna_a_search_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    assert main(["train", "--multirun", "seed=1,2", "sweep.sampler=optuna"]) == 2
    assert "sweep.sampler=optuna: needs Optuna 4 or later (pip install optuna)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "fails", "said"),
    [
        ("2.10.1", None, "needs Optuna 4 or later, 2.10.1 is installed (pip install --upgrade optuna)"),
        (
            "4.2.0",
            "optuna.storages",
            "Optuna 4.2.0 cannot be imported: ImportError: no BindParam (pip install --upgrade",
        ),
        (
            "4.2.0",
            "alembic.command",
            "Optuna 4.2.0 cannot be imported: ImportError: no BindParam (pip install --upgrade",
        ),
    ],
)
def test_an_optuna_that_does_not_fit_is_refused(
    version: str, fails: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """hydra-optuna-sweeper installs Optuna 2.10, and alembic may be of another age than sqlalchemy."""

    def importing(name: str, *args: Any) -> Any:
        if name == fails:
            raise ImportError("no BindParam")
        return import_module(name, *args)

    import_module = importlib.import_module
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(importlib, "import_module", importing)
    assert main(["train", "--multirun", "seed=1,2", "sweep.sampler=optuna"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1
