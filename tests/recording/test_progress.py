"""Progress: a bar on a terminal, few lines elsewhere, and a summary that fits on one screen."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from burgersgd.recording import progress
from burgersgd.recording.progress import Progress, SweepProgress, summary, sweep_summary


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_every_twentieth_of_the_budget(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(20_000, "local_entropy", stream)
    for evaluations in range(0, 20_001, 10):
        clock[0] += 0.001
        shown.update(evaluations, train_loss=0.5)
    shown.close()
    shown.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21  # 0 %, 5 %, ..., 100 %
    assert lines[0] == "local_entropy   0%  0/20,000, loss 0.5"
    assert lines[1] == "local_entropy   5%  1,000/20,000, 9.90k grad/s, loss 0.5"  # 1,000 in 101 updates of 1 ms
    assert lines[-1].startswith("local_entropy 100%  20,000/20,000")


def test_line_shows_the_latest_loss_and_error(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(100, "sgd", stream)
    shown.update(1, train_loss=1.5, validation_error=0.125)
    shown.update(2, train_loss=1.25)
    clock[0] += 2.0
    shown.close()
    assert stream.getvalue().splitlines()[-1] == "sgd   2%  2/100, 1.00 grad/s, loss 1.25, val. error 12.50 %"


def test_few_large_steps_give_few_lines_and_the_end_is_always_shown(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(7, "sgd", stream)
    for evaluations in (3, 6):
        shown.update(evaluations)
    shown.close()
    assert [re.findall(r"\d/7", line) for line in stream.getvalue().splitlines()] == [["3/7"], ["6/7"]]


def test_resumed_run_counts_its_own_evaluations_for_the_rate(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = Progress(2_000, "sgd", stream, initial=1_000)
    clock[0] += 1.0
    shown.update(1_500)
    assert stream.getvalue() == "sgd  75%  1,500/2,000, 500 grad/s\n"


def test_bar_shows_rate_loss_and_error_on_a_terminal() -> None:
    stream = Terminal()
    shown = Progress(20_000, "local_entropy", stream)
    time.sleep(0.01)
    shown.update(10_000, train_loss=0.51234, validation_error=0.0892)
    shown.update(20_000, train_loss=0.25)
    shown.close()
    shown.close()
    text = stream.getvalue()
    last = text.replace("\n", "").split("\r")[-1]
    assert last.startswith("local_entropy 100%|")
    assert re.search(r"[\d.]+[kM]? grad/s, 00:00 left, loss 0.25, val. error 8.92 %\s*$", last)
    assert text.count("\n") == 1  # one line in all, redrawn


def test_bar_redraws_by_the_clock_not_by_the_call(clock: list[float]) -> None:
    stream = Terminal()
    shown = Progress(1_000, "sgd", stream)
    for evaluations in range(1_000):
        clock[0] += 0.001
        shown.update(evaluations)
    redrawn = stream.getvalue().count("\r")
    shown.close()
    assert 9 <= redrawn <= 12  # one second at a redraw each 0.1 s, and the empty bar


def everything_written(leader: int) -> str:
    """Return what arrived at a terminal whose follower is closed; the system hands it on piece by piece."""
    pieces = []
    while select.select([leader], [], [], 10.0)[0]:
        try:
            pieces.append(os.read(leader, 65536))
        except OSError:  # how Linux says that the follower is closed and nothing is left
            break
        if not pieces[-1]:  # how other systems do
            break
    return b"".join(pieces).decode()


def test_bar_fits_a_real_terminal_of_80_columns_and_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # it would win over the terminal's own width
    threads = threading.active_count()
    leader, follower = pty.openpty()
    try:
        with open(follower, "w", encoding="utf-8") as stream:
            fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            shown = Progress(20_000, "local_entropy", stream)
            shown.update(9_000, train_loss=0.5123, validation_error=0.0892)
            assert threading.active_count() <= threads  # fewer: one of an earlier test has ended meanwhile
            shown.close()
        text = everything_written(leader)
    finally:
        os.close(leader)
    frames = [frame for frame in re.split(r"[\r\n]+", text) if frame.strip()]
    assert len(frames) >= 2
    assert max(map(len, frames)) <= 80
    assert "loss 0.5123, val. error 8.92 %" in frames[-1]


def test_a_terminal_of_unknown_size_gets_lines() -> None:
    leader, follower = pty.openpty()  # 0 x 0, as in some containers
    try:
        with open(follower, "w", encoding="utf-8") as stream:
            shown = Progress(20, "sgd", stream)
            shown.update(10, train_loss=0.5)
            shown.close()
        assert everything_written(leader).startswith("sgd  50%  10/20, ")
    finally:
        os.close(leader)


def test_enabled_overrides_what_the_stream_is() -> None:
    silent, forced = Terminal(), io.StringIO()
    for stream, enabled in ((silent, False), (forced, True)):
        shown = Progress(10, "sgd", stream, enabled=enabled)
        shown.update(5)
        shown.close()
    assert silent.getvalue() == ""
    assert "50%|" in forced.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_update_writes_nothing_when_nothing_is_due(stream: io.StringIO, clock: list[float]) -> None:
    shown = Progress(10**12, "sgd", stream)
    clock[0] += 1.0
    shown.update(0)
    before = stream.getvalue()
    for evaluations in range(10_000):
        shown.update(evaluations, 0.5, 0.1)
    assert stream.getvalue() == before


def test_a_sweep_is_one_bar_for_all_its_fleets(clock: list[float]) -> None:
    stream = io.StringIO()
    shown = SweepProgress(stream)
    shown.expect(6, 6_000)
    clock[0] += 1.0
    shown.add(2_000, train_loss=0.5, validation_error=0.125)  # of one run: one seed's luck
    shown.best(0.25)
    shown.add(2_000, validation_error=0.0625)
    shown.done(4, 4_000)
    shown.expect(2, 2_000)  # as it was said before
    clock[0] += 1.0
    shown.add(1_000)
    shown.done(2, 2_000)
    for _ in range(2):
        shown.close()
    assert stream.getvalue().splitlines() == [
        "0/6 runs  33%  2,000/6,000, 2.00k grad/s, 00:02 left",
        "0/6 runs  67%  4,000/6,000, 4.00k grad/s, 00:00 left, best mean 25.00 %",
        "4/6 runs  83%  5,000/6,000, 2.50k grad/s, 00:00 left, best mean 25.00 %",
        "6/6 runs 100%  6,000/6,000, 3.00k grad/s, 00:00 left, best mean 25.00 %",
    ]


def test_the_bar_of_a_sweep_may_go_back_when_a_fleet_starts_again() -> None:
    stream = Terminal()
    shown = SweepProgress(stream)
    shown.expect(2, 2_000)
    shown.percent = False
    shown.add(1_500)
    shown.best(0.125)
    shown.add(-1_000)
    shown.done(1, 1_000)
    shown.close()
    last = stream.getvalue().replace("\n", "").split("\r")[-1]
    assert re.match(r"1/2 runs  50%\|.*grad/s, .* left, best mean 0.125\s*$", last)


def test_the_error_of_a_regression_is_called_rmse_everywhere(tmp_path: Path) -> None:
    stream = io.StringIO()
    shown = Progress(100, "sgd", stream, percent=False)
    shown.update(100, train_loss=1.5, validation_error=77.95)
    errors: dict[str, Any] = {"validation_error": 0.5, "test_error": 0.25, "best_test_error": 0.125}
    text = stream.getvalue() + summary(**COMPLETED, **errors, percent=False)
    for words in (
        "val. RMSE 77.95",
        "  validation RMSE       0.5\n",
        "  test RMSE             0.25\n",
        "  best by validation    test RMSE 0.125\n",
    ):
        assert words in text
    assert "error" not in text


COMPLETED: dict[str, Any] = {
    "optimizer": "local_entropy (lr=0.1, nu=0.001, gamma=0.1, inner_steps=20, burn_in=0, averaging=uniform)",
    "data": "digits, 1,078 train / 359 validation / 360 test",
    "model": "mlp 64-64-64-10",
    "parameters": 8970,
    "evaluations": 20_000,
    "seconds": 2.0,
}


def test_summary_of_a_completed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = summary(
        **COMPLETED,
        folder=tmp_path / "outputs" / "a b",
        train_loss=0.0123456,
        validation_error=8 / 359,
        test_error=9 / 360,
        test_loss=0.25,
        best_test_error=0.0222,
        best_at=12_000,
    )
    rule = "-" * 80
    assert text.splitlines() == [
        rule,
        "  optimizer             local_entropy (lr=0.1, nu=0.001, gamma=0.1,",
        "                        inner_steps=20, burn_in=0, averaging=uniform)",
        "  data                  digits, 1,078 train / 359 validation / 360 test",
        "  model                 mlp 64-64-64-10, 8,970 parameters",
        "  gradient evaluations  20,000 in 2.0 s (10.0k grad/s)",
        "",
        "  final train loss      0.01235",
        "  validation error      2.23 %",
        "  test error            2.50 %",
        "  test loss             0.25",
        "  best by validation    test error 2.22 % at 12,000 gradient evaluations",
        "",
        "  folder                outputs/a b",
        "  show curves with      tensorboard --logdir 'outputs/a b'",
        rule,
    ]


def test_summary_of_a_diverged_run_says_where_and_shows_no_errors() -> None:
    text = summary(**COMPLETED, folder=Path("/elsewhere/run"), diverged_at=1_234, last_finite_loss=1e30)
    assert "  DIVERGED              at gradient evaluation 1,234, last finite loss 1e+30\n" in text
    assert "  folder                /elsewhere/run\n" in text
    assert "error" not in text


def test_summary_shows_what_there_is() -> None:
    nothing: dict[str, Any] = COMPLETED | {"seconds": 0.0, "evaluations": 0}
    assert "0 in 0.0 s\n\n  test loss             0.5\n---" in summary(**nothing, test_loss=0.5)
    long: dict[str, Any] = COMPLETED | {"seconds": 200.0}
    assert "20,000 in 03:20 (100 grad/s)" in summary(**long)


def test_summary_of_a_sweep_shows_the_best_run_and_why_jobs_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = [("seed=3", "cannot write there: No space left on device"), ("seed=4", "MemoryError: no more")]
    shown = sweep_summary(
        states={"completed": 61, "diverged": 1, "failed": 2, "waiting": 0},
        failed=failed,
        folder=tmp_path / "outputs" / "s",
        settings="  nu=1e-6  8  2.23",
        best_folder=tmp_path / "outputs" / "s" / "abc",
    )
    rule = "-" * 80
    assert shown.splitlines() == [
        rule,
        "  nu=1e-6  8  2.23",
        "",
        "  jobs                  64: 61 completed, 1 diverged, 2 failed",
        "  failed                seed=3: cannot write there: No space left on device",
        "  failed                seed=4: MemoryError: no more",
        "",
        "  best run              outputs/s/abc",
        "  folder                outputs/s",
        "  compare with          burgersgd compare outputs/s",
        "  show curves with      tensorboard --logdir outputs/s",
        rule,
    ]
    unsuccessful = {
        "diverged": [(f"seed={k}", f"lr * L = {2.5e3 * k:.3g} >= 2 with L = -1.5e-{k}") for k in (1, 2, 3)],
        "not learnt": [("seed=7", "steps are very small")],
    }
    shown = sweep_summary(states={"completed": 1, "diverged": 3}, failed=[], unsuccessful=unsuccessful, folder=tmp_path)
    assert "  diverged              3 jobs, the first is seed=1: lr * L = 2.5e+03 >= 2 with" in shown
    assert "  not learnt            seed=7: steps are very small\n" in shown
    nothing = sweep_summary(states={"completed": 0, "diverged": 2}, failed=[], folder=tmp_path)
    assert "2: 2 diverged\n\n  folder" in nothing


def test_summary_never_breaks_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths below the working directory are shown relative to it
    folder = tmp_path / ("long-" * 30) / "run"
    text = summary(**COMPLETED, folder=folder)
    assert f"tensorboard --logdir {folder}" in " ".join(text.split())
    assert str(folder) in text


def test_summaries_are_as_wide_as_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("200", 80), ("62", 62), ("40", 40), ("7", 40)):
        monkeypatch.setenv("COLUMNS", columns)
        report = sweep_summary(states={"completed": 1}, failed=[("seed=3", "no space " * 20)], folder=tmp_path)
        lines = [*summary(**COMPLETED, advice="a smaller rate " * 20).splitlines(), *report.splitlines()]
        whole = [line for line in lines if " " in line[24:] or "-" * 20 in line]  # a single word is never cut
        assert max(len(line) for line in whole if "tensorboard" not in line and "compare" not in line) == width


def test_summary_is_plain_ascii() -> None:
    assert summary(**COMPLETED, diverged_at=1).isascii()
    assert progress.WIDTH == 80
