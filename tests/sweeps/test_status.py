"""burgersgd status for sweeps, single runs, and the latest of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from burgersgd.api import train
from burgersgd.cli import main
from burgersgd.config import SgdConfig, TrainConfig
from burgersgd.recording.claims import claim, release
from burgersgd.recording.files import RunFolderError
from burgersgd.recording.naming import JOBS
from burgersgd.recording.reading import LAST_BYTES, METRICS, STATUS, read_status, spent_so_far
from burgersgd.recording.run_folder import RunFolder
from burgersgd.sweeps.status import job_states, progress_of
from burgersgd.sweeps.status_command import main as status

DIGITS = ("0" * 12, "1" * 12, "2" * 12, "3" * 12)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Return what the command prints as JSON."""
    capsys.readouterr()
    assert status([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def half_a_sweep(root: Path) -> Path:
    """Write a sweep of four jobs: one is being trained, one was interrupted, one is over, one was not begun."""
    sweep = root / "multirun" / "s"
    sweep.mkdir(parents=True)
    lines = [{"name": f"seed={k}-{name}", "overrides": f"seed={k}"} for k, name in enumerate(DIGITS)]
    (sweep / JOBS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"optimizer": {"name": "sgd"}, "seed": 0}
    for k, (evaluations, budget) in enumerate([(30, 200), (50, 100)]):
        folder = RunFolder.create(sweep / f"seed={k}-{DIGITS[k]}", config, budget=budget)
        for at in (0, evaluations):
            folder.metrics({"evaluations": at, "train_loss": 0.5})
        if k == 1:
            folder.status("interrupted")
        folder.close()
    folder = RunFolder.create(sweep / f"seed=2-{DIGITS[2]}", config, budget=300)
    folder.status("diverged", evaluations=7, budget=300)
    folder.close()
    return sweep


def test_jobs_have_a_progress_whatever_their_state(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = half_a_sweep(outputs)
    assert claim(sweep / f"seed=0-{DIGITS[0]}")
    try:
        jobs = shown(capsys, "s")
    finally:
        release(sweep / f"seed=0-{DIGITS[0]}")
    assert [job["state"] for job in jobs] == ["running", "interrupted", "diverged", "waiting"]
    assert [job["progress"] for job in jobs] == [0.15, 0.5, 1.0, 0.0]
    assert [(job["evaluations"], job["budget"]) for job in jobs] == [(30, 200), (50, 100), (7, 300), (0, None)]
    # the job that was not begun counts as an average one, of 200
    assert progress_of(job_states(sweep)) == pytest.approx((0.15 * 200 + 0.5 * 100 + 300) / 800)
    assert status(["s", "--jobs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in lines[:4]] == [["15", "%"], ["50", "%"], ["100", "%"], ["0", "%"]]
    assert any("48 % of the gradient evaluations" in line for line in lines)


def test_without_a_name_the_latest_sweeps_and_runs_are_shown(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_a_sweep(outputs)
    train(TrainConfig(optimizer=SgdConfig(), run_name="one"), progress=False)
    old = outputs / "multirun" / "s"
    for path in (old, *old.iterdir()):
        os.utime(path, (1e9, 1e9))
    latest = shown(capsys)
    assert [Path(about["folder"]).name for about in latest] == ["one", "s"]
    assert [about["kind"] for about in latest] == ["run", "sweep"]
    assert latest[1]["states"] == {"diverged": 1, "interrupted": 2, "waiting": 1}
    assert latest[1]["updated"].startswith("2001-09-0")
    assert shown(capsys, str(outputs / "multirun"))[0]["folder"] == str(outputs / "multirun" / "s")
    status(["s"])  # writes results.csv, which does not make the sweep the latest
    assert [Path(about["folder"]).name for about in shown(capsys)] == ["one", "s"]
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert out.index("outputs/one") < out.index("outputs/multirun/s")
    assert "1 diverged, 2 interrupted, 1 waiting" in " ".join(out.split())


def test_a_single_run_is_shown_by_its_folder_or_name(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(TrainConfig(optimizer=SgdConfig(), run_name="one"), progress=False)
    found = shown(capsys, "one")
    assert found == shown(capsys, str(result.folder)) | {"folder": found["folder"]}
    assert (found["state"], found["progress"], found["evaluations"]) == ("completed", 1.0, result.evaluations)
    assert found["validation_error"] == result.validation_error
    assert status(["one"]) == 0
    out = capsys.readouterr().out
    assert f"{result.evaluations:,} of {result.evaluations:,} (100 %)" in out
    assert f"test error            {100 * result.test_error:.2f} %" in out
    assert read_status(outputs / "one")["n_test"] == 359


def test_status_shows_how_to_resume_an_interrupted_run_and_fails_for_a_failed_one(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder.create(outputs / "a run", {"optimizer": {"name": "sgd"}}, budget=80)
    folder.metrics({"evaluations": 20})
    assert read_status(folder.path) | {"updated": ""} == {"state": "running", "updated": "", "budget": 80}
    folder.status("interrupted")
    folder.close()
    assert status(["a run"]) == 0
    out = capsys.readouterr().out
    assert "20 of 80 (25 %)" in out
    assert "burgersgd train resume='outputs/a run'" in out
    with RunFolder.reopen(folder.path) as again:
        again.rewind(None)
        again.status("failed", reason="no reason")
    assert read_status(folder.path)["budget"] == 80
    assert status(["a run"]) == 1
    assert "no reason" in capsys.readouterr().out


def test_what_is_not_there_is_one_line(outputs: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing: there is no such folder"):
        status(["nothing"])
    with pytest.raises(RunFolderError, match="outputs: there is no such folder"):
        status([])
    outputs.mkdir()
    with pytest.raises(RunFolderError, match="outputs: must be the folder of a run or a sweep"):
        status([])


@pytest.mark.parametrize("lines", [[], ["0,1", "7,2"], [f"{k},{'x' * 90}" for k in range(200)]])
def test_the_last_whole_row_is_found_from_the_end_of_the_file(lines: list[str], tmp_path: Path) -> None:
    text = "\n".join(["evaluations,loss", *lines, ""])
    (tmp_path / METRICS).write_text(text + "999999")  # a line that is being written
    assert spent_so_far(tmp_path) == (int(lines[-1].partition(",")[0]) if lines else 0)
    assert (len(text) > LAST_BYTES) == (len(lines) > 100)
    assert spent_so_far(tmp_path / "none") == 0
    assert not (tmp_path / STATUS).exists()
