"""Names of job folders: readable, safe on every file system, and found by the hash alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.cli import main
from burgersgd.recording.claims import claim, is_claimed, release
from burgersgd.recording.naming import LONGEST, hash_of, job_folder, job_folders, job_name, other_folder, same_job
from burgersgd.recording.run_folder import FolderTakenError, RunFolder, read_status
from burgersgd.sweeps import chunks
from burgersgd.sweeps.status import job_states

DIGITS = "050de9ae7725"
OTHER = "0123456789ab"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["optimizer=sgd", "optimizer.lr=0.3", "seed=3"], f"sgd,lr=0.3,seed=3-{DIGITS}"),
        (["seed=3", "optimizer.lr=1e-07"], f"seed=3,lr=1e-07-{DIGITS}"),
        (["optimizer=sgd"], f"optimizer=sgd-{DIGITS}"),
        (["optimizer=sgd", "dataset=wine"], f"optimizer=sgd,dataset=wine-{DIGITS}"),
        (["seed=1", "dataset.seed=2"], f"seed=1,dataset.seed=2-{DIGITS}"),
        (["dataset.seed=2", "model.depth=1"], f"dataset.seed=2,depth=1-{DIGITS}"),
        (["+optimizer.gamma=.inf", "++model.widths=[4, 'a/b']"], f"gamma=.inf,widths=4,a_b-{DIGITS}"),
        (["dataset.path=/data/Übung: 1.npz"], f"path=_data__bung_1.npz-{DIGITS}"),
        ([], DIGITS),
    ],
)
def test_names_say_what_varies_in_the_order_given(words: list[str], name: str) -> None:
    assert job_name(words, DIGITS) == name
    assert hash_of(name) == same_job(name) == DIGITS


@given(st.lists(st.tuples(st.text(min_size=1, max_size=30), st.text(max_size=60)), max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_name_is_short_plain_and_leads_back_to_its_hash(pairs: list[tuple[str, str]]) -> None:
    name = job_name([f"{key}={value}" for key, value in pairs], DIGITS)
    assert len(name.encode()) <= LONGEST
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,=+-")
    assert name[0] not in ".-" or name == DIGITS
    assert hash_of(name) == DIGITS


@pytest.mark.parametrize("name", ["run", f"sgd-{DIGITS}", f"{DIGITS}0", f"lr=1-{DIGITS[1:]}", f"lr=1-{DIGITS.upper()}"])
def test_other_names_have_no_hash(name: str) -> None:
    assert hash_of(name) is None
    assert same_job(name) == name


def test_folders_are_found_by_hash_and_those_with_something_in_them_first(tmp_path: Path) -> None:
    for name in (f"a=1-{DIGITS}", f"b=1-{DIGITS}", OTHER, "x"):
        (tmp_path / name).mkdir()
    assert job_folders(tmp_path) == {DIGITS: tmp_path / f"a=1-{DIGITS}", OTHER: tmp_path / OTHER}
    assert other_folder(tmp_path / f"a=1-{DIGITS}") is None
    (tmp_path / f"b=1-{DIGITS}" / "file").touch()
    assert job_folders(tmp_path)[DIGITS] == tmp_path / f"b=1-{DIGITS}"
    assert job_folder(tmp_path / DIGITS) == job_folder(tmp_path / f"a=1-{DIGITS}") == tmp_path / f"b=1-{DIGITS}"
    assert job_folder(tmp_path / "x") == tmp_path / "x"
    assert job_folders(tmp_path / "none") == {}


def test_a_job_is_locked_by_its_hash_whatever_it_is_called(tmp_path: Path) -> None:
    mine, theirs = tmp_path / f"lr=0.3-{DIGITS}", tmp_path / f"seed=1-{DIGITS}"
    assert claim(mine)
    assert not claim(theirs)
    assert claim(tmp_path / f"lr=0.3-{OTHER}")
    other_process = f"from pathlib import Path; from burgersgd.recording import claims; p = Path({str(tmp_path)!r}); "
    other_process += f"print([claims.claim(p / n) for n in ('{DIGITS}', 'seed=1-{DIGITS}', 'seed=1-{DIGITS[:-1]}0')])"
    shown = subprocess.run([sys.executable, "-c", other_process], capture_output=True, text=True, check=True).stdout
    assert shown == "[False, False, True]\n"
    release(theirs)
    assert not is_claimed(mine)
    release(tmp_path / f"lr=0.3-{OTHER}")


def test_a_second_folder_of_one_job_is_not_made(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / f"lr=0.3-{DIGITS}", {}).close()
    with pytest.raises(FolderTakenError, match=f"lr=0.3-{DIGITS} holds the same job"):
        RunFolder.create(tmp_path / f"seed=1-{DIGITS}", {})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"lr=0.3-{DIGITS}"]


GRID = ["train", "--multirun", "optimizer=sgd", "trainer.budget=40", "model.width=4", "sweep.name=s"]


def names() -> set[str]:
    return {path.name for path in Path("outputs/multirun/s").iterdir() if path.is_dir()}


def test_a_second_grid_finds_the_jobs_of_the_first_by_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*GRID, "optimizer.lr=0.2", "seed=1,2"]) == 0
    first = names()
    assert {name.rpartition("-")[0] for name in first} == {"seed=1", "seed=2"}
    assert main([*GRID, "optimizer.lr=0.1,0.2", "seed=2,3"]) == 0
    assert "trained before        1, trained now 3" in capsys.readouterr().out
    assert {name.rpartition("-")[0] for name in names() - first} == {"lr=0.1,seed=2", "lr=0.1,seed=3", "lr=0.2,seed=3"}
    assert [job.state for job in job_states(Path("outputs/multirun/s"))] == ["completed"] * 5
    assert main(["list", "outputs/multirun/s", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {Path(run["folder"]).name for run in listed} == names()


def test_a_folder_of_0_1_0_is_the_job_that_its_hash_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*GRID, "optimizer.lr=0.2", "seed=1,2"]) == 0
    root = Path("outputs/multirun/s")
    for name in names():
        (root / name).rename(root / same_job(name))
    jobs = (root / "jobs.jsonl").read_text()
    (root / "jobs.jsonl").write_text(jobs.replace("seed=1-", "").replace("seed=2-", ""))
    before = {name: (root / name / "metrics.csv").stat().st_mtime_ns for name in names()}
    assert main([*GRID, "optimizer.lr=0.2", "seed=1,2"]) == 0
    assert {name: (root / name / "metrics.csv").stat().st_mtime_ns for name in names()} == before
    assert [job.name for job in job_states(root)] == sorted(before, key=lambda name: jobs.index(name))
    assert (root / "results.csv").read_text().count("completed") == 2


@pytest.mark.slow
def test_a_job_that_another_process_has_made_meanwhile_by_another_name_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looks for its jobs, then this one trains one of them, then the other one begins."""
    monkeypatch.chdir(tmp_path)
    original = chunks.train_jobs

    def late(*arguments: object, **more: object) -> object:
        command = [sys.executable, "-m", "burgersgd", *GRID, "optimizer.lr=0.2", "seed=1,2"]
        subprocess.run(command, check=True, capture_output=True)
        return original(*arguments, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(chunks, "train_jobs", late)
    assert main([*GRID, "optimizer.lr=0.1,0.2", "seed=1"]) == 0
    assert {name.rpartition("-")[0] for name in names()} == {"seed=1", "seed=2", "lr=0.1"}
    assert all(read_status(Path("outputs/multirun/s", name))["state"] == "completed" for name in names())
    assert (Path("outputs/multirun/s") / "results.csv").read_text().count("completed") == 2
