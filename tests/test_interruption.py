"""Signals: the step is finished, the run is saved, the exit code is 75, and a resumed run has the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burgersgd import interruption
from burgersgd.api import resume, train, train_fleet
from burgersgd.cli import main
from burgersgd.interruption import Interrupted, interruptible
from burgersgd.recording.run_folder import read_checkpoint, read_status
from burgersgd.training.fleet import Fleet
from tests.conftest import small_config
from tests.killing import run_until_done
from tests.test_resume import assert_same, named

SHORT = ["trainer.budget=60", "model.width=8", "trainer.compile=off", "trainer.precision=float64"]


@pytest.fixture(autouse=True)
def _none_is_ignored() -> Iterator[None]:
    """Handle the signals that this process was started to ignore, as nohup does with SIGHUP."""
    ignored = [number for number in interruption.SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Let something happen within gradient evaluation k."""
    happenings: dict[int, Callable[[], None]] = {}
    step = Fleet._steps

    def patched(self: Fleet, k: int, stop: int) -> int:
        happenings.pop(k, lambda: None)()
        return step(self, k, stop)

    monkeypatch.setattr(Fleet, "_steps", patched)
    return happenings.__setitem__


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_saves_the_run_and_exits_with_75(
    number: int, at_step: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(n) for n in (*interruption.SIGNALS, signal.SIGALRM)]
    assert main(["train", *SHORT, "run_name=undisturbed"]) == 0
    at_step(33, send(number))
    assert main(["train", *SHORT, "run_name=stopped"]) == 75
    assert [signal.getsignal(n) for n in (*interruption.SIGNALS, signal.SIGALRM)] == before
    folder = tmp_path / "outputs/stopped"
    assert read_checkpoint(folder)["evaluations"] == 34  # the step was finished
    status = read_status(folder)
    assert (status["state"], status["reason"]) == ("interrupted", f"Interrupted: {signal.Signals(number).name}")
    error = capsys.readouterr().err
    assert "resume with: burgersgd train resume=outputs/stopped" in error
    assert main(["train", "resume=outputs/stopped"]) == 0
    assert_same(tmp_path / "outputs/undisturbed", folder)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_what_is_ignored_stays_ignored(at_step: Callable[..., None]) -> None:
    """As nohup has it with SIGHUP, and a shell with SIGINT of what it starts in the background."""
    for number in (signal.SIGHUP, signal.SIGINT):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            at_step(7, send(number))
            assert train(small_config(), record=False, progress=False).state == "completed"
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


def test_an_interrupted_run_has_its_log(at_step: Callable[..., None], tmp_path: Path) -> None:
    at_step(21, send(signal.SIGHUP))
    with pytest.raises(Interrupted):
        train(named(small_config(), "run"), progress=False)
    assert "Interrupted: SIGHUP" in (tmp_path / "outputs/run/log.txt").read_text()


def test_the_timer_of_the_caller_keeps_running(at_step: Callable[..., None]) -> None:
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 1e6, 3.0)
    try:
        at_step(21, send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(small_config(), record=False, progress=False)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0.9e6 < left <= 1e6
        assert interval == 3.0
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watchdog_signal_as_the_step_ends_is_not_a_second_signal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.0)
    kill, barked = signal.pthread_kill, threading.Event()
    monkeypatch.setattr(signal, "pthread_kill", lambda *_: barked.set())  # it is on its way
    with interruptible() as current:
        with current.deferred():
            signal.raise_signal(number)
            assert barked.wait(60)
        kill(threading.get_ident(), number)  # and arrives when the step is over
        assert current.requested == number


def test_every_run_of_a_fleet_is_saved(at_step: Callable[..., None], tmp_path: Path) -> None:
    at_step(21, send(signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        train_fleet([named(small_config(seed=s), f"run{s}") for s in (1, 2, 3)], progress=False)
    folders = [tmp_path / f"outputs/run{s}" for s in (1, 2, 3)]
    assert caught.value.folders == folders
    assert [read_checkpoint(folder)["evaluations"] for folder in folders] == [22] * 3
    assert [read_status(folder)["state"] for folder in folders] == ["interrupted"] * 3


def test_a_signal_in_the_last_step_completes_the_run(at_step: Callable[..., None]) -> None:
    at_step(39, send(signal.SIGTERM))
    assert train(small_config(), record=False, progress=False).state == "completed"


def test_a_signal_before_the_first_step_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burgersgd.build import prepared

    def interrupted_prepare(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prepared, "prepare", interrupted_prepare)
    assert main(["train", *SHORT]) == 75
    assert not (tmp_path / "outputs").exists()


def test_a_step_that_does_not_end_is_abandoned(
    at_step: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is resumed from the previous checkpoint."""
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.05)

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)

    train(named(small_config(), "undisturbed", checkpoint_every=11), progress=False)
    at_step(30, hang)
    with pytest.raises(Interrupted):
        train(named(small_config(), "hung", checkpoint_every=11), progress=False)
    assert read_checkpoint(tmp_path / "outputs/hung")["evaluations"] == 22
    assert read_status(tmp_path / "outputs/hung")["state"] == "interrupted"
    resume(tmp_path / "outputs/hung", progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/hung")


def test_a_second_ctrl_c_exits_at_once(at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    class Exit(BaseException):
        pass

    def exit_(code: int) -> None:
        codes.append(code)
        raise Exit

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "_exit", exit_)
    at_step(7, twice)
    with pytest.raises(Exit):
        main(["train", *SHORT])
    assert codes == [130]
    at_step(7, twice)
    with pytest.raises(KeyboardInterrupt) as caught:  # in a notebook it must not end the process
        train(small_config(), record=False, progress=False)
    assert not isinstance(caught.value, Interrupted)


def test_other_threads_train_without_handlers() -> None:
    states = []
    thread = threading.Thread(
        target=lambda: states.append(train(small_config(), record=False, progress=False).state), daemon=True
    )
    thread.start()
    thread.join(60)
    assert states == ["completed"]


def test_nested_sections_share_the_outer_one() -> None:
    with interruptible() as outer, interruptible() as inner:
        assert inner is outer
        with outer.deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert outer.requested == signal.SIGUSR1
            outer.step_ended()
    with pytest.raises(Interrupted, match="SIGUSR2"), interruptible():
        signal.raise_signal(signal.SIGUSR2)


@pytest.mark.slow
def test_five_kills_at_random_file_operations_change_nothing(tmp_path: Path) -> None:
    """Real processes that die as by SIGKILL, until the run is done; the same 200 times in `make soak`."""
    arguments = ["trainer.budget=8000", "trainer.log_every=10", "trainer.checkpoint_every=20"]
    assert main(["train", *arguments, "run_name=undisturbed"]) == 0
    reached = run_until_done(tmp_path / "outputs/killed", arguments, n_kills=5, longest=300, seed=5)
    assert len(reached) == 6
    assert 0 < reached[-2] < reached[-1] == 8000  # the run has ten times as many operations
    assert reached == sorted(reached)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")


def test_sigterm_to_a_real_process_exits_with_75(tmp_path: Path) -> None:
    words = ["trainer.budget=10000000", "trainer.checkpoint_every=1000", "run_name=run"]
    command = [sys.executable, "-m", "burgersgd", "train", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "outputs/run/checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 75, error
    assert read_status(tmp_path / "outputs/run")["state"] == "interrupted"


def test_a_signal_is_heard_after_its_step_and_not_at_the_next_row(at_step: Callable[..., None], tmp_path: Path) -> None:
    at_step(5, send(signal.SIGTERM))
    with pytest.raises(Interrupted), interruptible():
        train(named(small_config(), "run", log_every=40, eval_every=40), progress=False)
    assert read_checkpoint(tmp_path / "outputs/run")["evaluations"] == 6
    assert read_status(tmp_path / "outputs/run")["state"] == "interrupted"
