"""burgersgd list: the shown columns of runs, their order, and filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burgersgd.analysis.listing import main
from tests.analysis.folders import write_run


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    for k, (state, lr) in enumerate([("completed", 0.1), ("diverged", 0.2), ("interrupted", 0.3)]):
        updated = f"2026-11-2{k}T10:00:00"
        settings = {"optimizer.lr": lr, "seed": k}
        write_run(root / f"run{k}", settings, state, updated=updated, evaluations=150 * (k + 1), budget=600)
    return root


def test_the_newest_run_is_first_with_its_settings_state_and_progress(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("outputs")]
    assert [line.split()[0] for line in lines] == ["outputs/run2", "outputs/run1", "outputs/run0"]
    assert "2026-11-20 10:00" in lines[2]
    assert "lr=0.1 seed=0" in lines[2]
    assert lines[2].split()[-1] == "%"
    assert "25 %" in lines[2]
    assert "10.00 %" in lines[2]
    assert "interrupted" in lines[0]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["--state", "completed"], ["run0"]),
        (["--state", "diverged", "--state", "interrupted"], ["run2", "run1"]),
        (["--where", "optimizer.lr=0.2"], ["run1"]),
        (["-n", "1"], ["run2"]),
        (["-n", "0"], ["run2", "run1", "run0"]),
        (["--where", "seed=0", "--state", "diverged"], []),
    ],
)
def test_filters(filters: list[str], left: list[str], outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(outputs), "--json", *filters]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [Path(run["folder"]).name for run in runs] == left
    for run in runs:
        assert run["settings"]["optimizer.lr"] == pytest.approx(0.1 * (1 + run["settings"]["seed"]))


def test_a_filter_that_names_nothing_is_one_line(outputs: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.gama: none of the 3 runs has this key"):
        main([str(outputs), "--where", "optimizer.gama=1"])
    with pytest.raises(ValueError, match="must be KEY=VALUE"):
        main([str(outputs), "--where", "seed"])


def test_older_runs_that_are_left_out_are_counted(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(outputs), "-n", "2"]) == 0
    assert "and 1 older runs; -n 0 lists all" in capsys.readouterr().out
