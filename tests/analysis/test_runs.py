from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import burgersgd
from burgersgd.analysis.runs import AS_BEFORE, ONLY_WITH, UNHASHED, Runs, flat, load
from burgersgd.config import GROUPS, MlpConfig, TrainConfig, TrainerConfig
from burgersgd.identity import NOT_HASHED, canonical, own_record
from burgersgd.recording.files import RunFolderError
from burgersgd.recording.run_folder import RunFolder
from burgersgd.schema import as_before, is_added
from tests.analysis.folders import write_run


def test_run_folders_are_found_at_any_depth_by_path_glob_and_name_of_a_sweep(tmp_path: Path) -> None:
    deep = write_run(tmp_path / "outputs/multirun/map/sgd,lr=0.3,seed=3-050de9ae7725", {"seed": 3})
    write_run(tmp_path / "outputs/multirun/map/050de9ae7726", {"seed": 4})
    write_run(tmp_path / "outputs/2026-11-26_sgd", {"seed": 5})
    assert [run.seed for run in load("outputs")] == [5, 4, 3]
    assert [run.seed for run in load("map")] == [4, 3]
    assert [run.seed for run in load(deep)] == [3]
    assert [run.seed for run in load("outputs/2026*", "outputs/*/map/*")] == [5, 4, 3]
    assert [run.seed for run in load(deep, "map", deep)] == [3, 4]


@pytest.mark.parametrize("path", ["nowhere", "nothing*", "empty"])
def test_no_run_at_all_is_one_line(tmp_path: Path, path: str) -> None:
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(RunFolderError, match=f"^{path.replace('*', '.')}: (contains no run folder|there is no such)"):
        load(path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (".hydra/config.yaml", ""),
        (".hydra/config.yaml", "optimizer: [a"),
        (".hydra/config.yaml", "- 3"),
        (".hydra/config.yaml", "optimizer: sgd"),
        ("status.json", ""),
        ("status.json", "null"),
        ("status.json", "[]"),
        ("status.json", '{"state": 3}'),
        ("status.json", '{"state": "comp'),
    ],
)
def test_a_folder_that_cannot_be_read_is_noted_and_the_rest_is_there(tmp_path: Path, file: str, content: str) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {"seed": 1})
    (tmp_path / "a" / file).write_text(content)
    runs = load(tmp_path)
    assert [run.seed for run in runs] == [1]
    assert len(runs.notes) == 1
    assert str(tmp_path / "a" / file) in runs.notes[0]
    assert "\n" not in runs.notes[0]


@pytest.mark.parametrize("missing", [".hydra/config.yaml", "status.json"])
def test_a_half_written_folder_is_noted(tmp_path: Path, missing: str) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {"seed": 1})
    (tmp_path / "a" / missing).unlink()
    runs = load(tmp_path)
    assert len(runs) == 1
    assert "left out" in runs.notes[0]
    with pytest.raises(RunFolderError, match="contains no run that can be read"):
        load(tmp_path / "a")


def test_a_running_run_without_its_process_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", state="running")
    assert load(tmp_path)[0].state == "interrupted"


def test_curves_are_read_by_their_header_and_end_before_a_line_that_was_cut(tmp_path: Path) -> None:
    rows = [
        {"sharpness": 7.5, "evaluations": 0, "train_loss": ""},
        {"sharpness": 8, "evaluations": 12, "train_loss": 0.3},
    ]
    path = write_run(tmp_path / "a", rows=rows)
    with open(path / "metrics.csv", "a") as stream:
        stream.write("9,24,0.1")  # no end of the line: the 0.1 may be 0.17
    curves = load(path)[0].curves
    assert {name: column.tolist() for name, column in curves.items() if name != "train_loss"} == {
        "sharpness": [7.5, 8],
        "evaluations": [0, 12],
    }
    assert math.isnan(curves["train_loss"][0])
    assert curves["train_loss"][1] == 0.3


def test_keys_that_follow_from_a_name_do_not_count_as_differing(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"optimizer": {"name": "sgd", "lr": 0.3, "momentum": 0.9}})
    write_run(tmp_path / "b", {"optimizer": {"name": "adamw", "lr": 0.001}, "output_root": "x", "run_name": "y"})
    assert load(tmp_path).differing() == ["optimizer.name"]
    write_run(tmp_path / "c", {"optimizer": {"name": "adamw", "lr": 0.01}, "seed": 1, "sweep.name": "z"})
    assert load(tmp_path).differing() == ["optimizer.name", "optimizer.lr", "seed"]


def test_runs_are_chosen_by_their_settings_and_state(tmp_path: Path) -> None:
    for i, lr in enumerate([0.1, 0.3, 0.03]):
        write_run(tmp_path / str(i), {"optimizer.lr": lr, "model.widths": [3, i]}, "diverged" if i else "completed")
    runs = load(tmp_path)

    def lrs(runs: Runs) -> list[float]:
        return [run.settings["optimizer.lr"] for run in runs]

    assert lrs(runs.where({"optimizer.lr": "3e-1"})) == [0.3]
    assert lrs(runs.where({"optimizer.lr": ["0.1", 0.03]})) == [0.1, 0.03]
    assert lrs(runs.where({"state": "diverged", "optimizer.name": "sgd"})) == [0.3, 0.03]
    assert lrs(runs.where({"model.widths": ("3,1",)})) == [0.3]
    assert lrs(runs.where(lambda run: run.settings["optimizer.lr"] > 0.05)) == [0.1, 0.3]
    assert lrs(runs[1:]) == [0.3, 0.03]
    with pytest.raises(ValueError, match=r"optimizer.gamma: none of the 3 runs has this key; .* optimizer.lr"):
        runs.where({"optimizer.gamma": 1})


def test_the_table_has_a_row_for_each_run_and_becomes_a_frame(tmp_path: Path) -> None:
    write_run(tmp_path / "a", test_error=0.25)
    write_run(tmp_path / "b", {"optimizer": {"name": "langevin", "lr": 0.3, "temperature": 1e-7}}, state="failed")
    frame = load(tmp_path).frame()
    assert frame["state"].tolist() == ["completed", "failed"]
    assert frame["test_error"].tolist()[0] == 0.25
    assert frame["optimizer.temperature"].tolist()[1] == 1e-7
    assert frame["folder"].tolist() == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_nested_configurations_become_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [2, "x"]}, "e": None}) == {"a.b.c": 1, "a.d": ("2", "x"), "e": None}


def test_settings_are_what_the_hash_of_a_run_is_made_of(tmp_path: Path) -> None:
    config = TrainConfig(trainer=TrainerConfig(budget=600), model=MlpConfig(widths=[5, 7]), output_root="elsewhere")
    with RunFolder.create(tmp_path / "a", dataclasses.asdict(config)):
        pass
    (run,) = load(tmp_path)
    assert run.decides == flat(canonical(config, 600))
    assert dict(run.setting(without=("seed",))) == {k: v for k, v in run.decides.items() if k != "seed"}


def test_what_decides_nothing_is_what_the_classes_of_settings_say() -> None:
    only_with, before, undeciding = {}, {}, set()
    for group, choices in GROUPS.items():
        for cls in (choices[name] for name in choices.shipped):
            for f in dataclasses.fields(cls):
                key = f"{group}.{f.name}"
                if f.metadata.get("hashed_with"):
                    only_with[key] = f"{group}.{f.metadata['hashed_with']}"
                if is_added(f) and group not in NOT_HASHED and f.metadata.get("hashed", True):
                    before[key] = as_before(f)
                if not f.metadata.get("hashed", True):
                    undeciding.add(key)
    assert only_with == ONLY_WITH
    assert before == AS_BEFORE
    unhashed = {key for key in undeciding if key.partition(".")[0] not in NOT_HASHED} - {"trainer.epochs"}
    assert unhashed | NOT_HASHED == set(UNHASHED)


def test_runs_of_the_version_before_a_key_was_added_are_the_same_runs(tmp_path: Path) -> None:
    record = dataclasses.asdict(TrainConfig())
    new = tmp_path / "new"
    write_run(new).joinpath(".hydra/config.yaml").write_text(yaml.safe_dump(record))
    del record["dataset"]["noisy_validation"]
    write_run(tmp_path / "old").joinpath(".hydra/config.yaml").write_text(yaml.safe_dump(record))
    runs = load(tmp_path)
    assert runs.differing() == []
    assert runs[0].setting() == runs[1].setting()
    record["dataset"] |= {"noisy_validation": False, "label_noise": 0.2}
    write_run(tmp_path / "noisy").joinpath(".hydra/config.yaml").write_text(yaml.safe_dump(record))
    assert "dataset.label_noise" in load(tmp_path).differing()


def test_data_and_models_of_ones_own_are_distinguished_by_what_is_recorded(tmp_path: Path) -> None:
    config = TrainConfig()
    for name, model, own in (("a", None, False), ("b", "Net", True), ("c", "Other", True)):
        record = own_record(config, model, own)
        write_run(tmp_path / name).joinpath(".hydra/config.yaml").write_text(yaml.safe_dump(record))
    assert load(tmp_path / "a", tmp_path / "b").differing() == ["dataset.name", "model.name"]
    assert load(tmp_path / "b", tmp_path / "c").differing() == ["model.class"]


def test_a_configuration_of_another_version_is_compared_by_all_that_it_says(tmp_path: Path) -> None:
    for i, rho in enumerate((0.1, 0.2)):
        write_run(tmp_path / str(i), {"optimizer": {"name": "not_yet", "rho": rho}, "sweep.name": str(i)})
    assert load(tmp_path).differing() == ["optimizer.rho"]


def test_reading_runs_imports_neither_the_trainer_nor_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    script = "import sys, burgersgd; print(burgersgd.load('a').compare())\n"
    script += "assert not {'torch', 'hydra', 'scipy.stats', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)


def test_load_is_part_of_the_package(tmp_path: Path) -> None:
    assert burgersgd.load(write_run(tmp_path / "a"))[0].budget == 600
