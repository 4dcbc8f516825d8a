"""sweep.spaces: the spaces of several optimizers, with equally many trials for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from burgersgd.arguments import with_plus
from burgersgd.cli import main
from burgersgd.config import ConfigError
from burgersgd.recording.reading import read_config
from burgersgd.sweeps.sweep import Sweep

SPACES = "sweep.spaces={sgd: {optimizer.lr: 'tag(log, interval(0.01,1))', optimizer.momentum: 'interval(0,0.9)'},"
SPACES += " langevin: {optimizer.lr: 'interval(0.1,0.2)', optimizer.temperature: 'tag(log, interval(1e-8,1e-6))'}}"
WORDS = ["trainer.budget=40", "model.width=4"]


def jobs(*words: str) -> list[list[str]]:
    return Sweep([*WORDS, *map(with_plus, words)]).jobs


def test_every_optimizer_has_its_own_space_and_as_many_trials() -> None:
    made = jobs(SPACES, "sweep.sampler=sobol", "sweep.n_samples=4", "seed=1,2")
    assert len(made) == 2 * 4 * 2
    keys = {"sgd": {"lr", "momentum"}, "langevin": {"lr", "temperature"}}
    values: dict[tuple[str, str], set[float]] = {}
    for job in made:
        words = dict(word.split("=", 1) for word in job)
        optimizer = words["optimizer"]
        assert {key.removeprefix("optimizer.") for key in words if "optimizer." in key} == keys[optimizer]
        for key, value in words.items():
            if key.startswith("optimizer."):
                values.setdefault((optimizer, key), set()).add(float(value))
    assert {len(found) for found in values.values()} == {4}
    assert all(0.1 <= lr <= 0.2 for lr in values["langevin", "optimizer.lr"])
    assert min(values["sgd", "optimizer.lr"]) < 0.1


def test_overrides_of_a_key_apply_to_the_optimizers_that_have_it() -> None:
    made = jobs(SPACES, "sweep.sampler=random", "sweep.n_samples=1", "optimizer.nesterov=true", "sweep.seed=3")
    assert ["optimizer.nesterov=true" in job for job in made] == [True, False]
    preset = "sweep.params={optimizer.momentum: '0.5,0.6', seed: 'range(2)'}"
    spaces = "sweep.spaces={sgd: {}, local_entropy: {}}"
    made = jobs(preset, spaces)
    assert len(made) == 2 * 2 * 2
    assert sum("optimizer.momentum=0.6" in job for job in made) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sweep.spaces={sgd: {optimizer.gamma: '1,2'}}"],
            "sweep.spaces.sgd: optimizer=sgd has no key optimizer.gamma",
        ),
        (["sweep.spaces={sgd: {model.width: '1,2'}}"], "sweep.spaces.sgd: optimizer=sgd has no key model.width"),
        (["sweep.spaces={sdg: {optimizer.lr: '1,2'}}"], "sweep.spaces: optimizer=sdg: .*did you mean sgd"),
        (
            [SPACES, "sweep.sampler=sobol", "optimizer=sgd"],
            "optimizer=sgd: must be left out, because sweep.spaces lists",
        ),
        ([SPACES, "sweep.sampler=sobol", "optimizer.gamma=1"], "optimizer.gamma: none of the optimizers"),
        ([SPACES, "sweep.sampler=optuna"], "sweep.sampler=optuna: cannot be combined with sweep.spaces"),
        ([SPACES], "a range needs sweep.sampler="),
        (
            ["sweep.spaces={sgd: {optimizer.lr: '1,2'}, langevin: {optimizer.lr: '0.1,0.2,0.3'}}"],
            "must have the same number of trials: sgd has 2, langevin has 3",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs(*words)


def test_a_single_run_has_no_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", SPACES]) == 2
    assert "sweep.spaces: has an effect only in a sweep; add --multirun" in capsys.readouterr().err


def test_spaces_are_trained_and_reported_by_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [SPACES, "sweep.sampler=sobol", "sweep.n_samples=2", "seed=1,2", "sweep.name=s"]
    assert main(["train", "--multirun", *WORDS, *words]) == 0
    out = capsys.readouterr().out
    assert "jobs                  8: 8 completed" in out
    assert len(re.findall(r"^(?:sgd|langevin) lr=\S+ \S+ +2 ", out, re.MULTILINE)) == 4
    folders = [path for path in Path("outputs/multirun/s").iterdir() if path.is_dir()]
    assert sorted(path.name.partition(",")[0] for path in folders) == ["langevin"] * 4 + ["sgd"] * 4
    config = read_config(folders[0])
    assert set(config["sweep"]["spaces"]) == {"sgd", "langevin"}


def test_a_sweep_is_trained_without_hydra_too(tmp_path: Path) -> None:
    sweep = Sweep([*WORDS, with_plus(SPACES), "sweep.sampler=sobol", "sweep.n_samples=1", f"output_root={tmp_path}"])
    sweep.quiet = True
    sweep.run_here(tmp_path / "there")
    assert sweep.exit_code == 0
    assert len([path for path in (tmp_path / "there").iterdir() if path.is_dir()]) == 2
