"""A run that continues or repeats a job of a sweep is not a job of it: its folder lies beside that of the sweep."""

from __future__ import annotations

from pathlib import Path

from burgersgd.api import resume
from burgersgd.cli import main
from burgersgd.revisit import rerun
from burgersgd.sweeps.status import job_states

SWEEP = Path("outputs/multirun/s")


def test_longer_runs_and_repetitions_leave_the_sweep_as_it_is(tmp_path: Path) -> None:
    words = ["optimizer=sgd", "trainer.budget=20", "model.width=4", "sweep.name=s", "sweep.workers=1"]
    assert main(["train", "--multirun", *words, "seed=1,2"]) == 0
    before = sorted(SWEEP.iterdir())
    (job, _) = sorted(path.parent for path in SWEEP.glob("*/status.json"))
    longer = resume(tmp_path / job, budget=40, progress=False)
    again = rerun(job, progress=False)
    assert longer.folder is not None
    assert longer.evaluations == 40
    folders = {path.absolute() for path in SWEEP.parent.iterdir() if path.is_dir()}
    assert folders == {SWEEP.absolute(), longer.folder.absolute(), again.result.folder}
    named = resume(job, budget=40, output_root="elsewhere", run_name="longer", progress=False)
    assert named.folder == tmp_path / "elsewhere/longer"
    assert sorted(SWEEP.iterdir()) == before
    assert len(job_states(SWEEP)) == 2
