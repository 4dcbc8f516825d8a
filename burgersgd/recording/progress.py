"""Displays the progress of a run and its summary at the end, in plain text."""

import contextlib
import os
import shlex
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from tqdm import tqdm

from burgersgd.recording.output import Unfailing
from burgersgd.recording.warned import NUMBER

REDRAW_SECONDS = 0.1
LINES = 20  # number of lines for one run where there is no terminal
WIDTH = 80
LABEL_WIDTH = 22
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {rate_noinv_fmt}, {remaining} left{postfix}"


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]  (generic in the stubs only)
    monitor_interval = 0  # tqdm's monitor thread is not needed: update() redraws by the clock


def _in_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules  # the shell of a notebook, not that of a terminal


def _bar_class() -> type[tqdm]:  # pyright: ignore[reportMissingTypeArgument]
    """Return the class of the bar: in a notebook the choice of tqdm.auto, a widget where ipywidgets is installed."""
    if not _in_notebook():
        return _Bar
    with warnings.catch_warnings():  # tqdm warns where ipywidgets is not installed, and draws the bar as text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as auto
    return type("_NotebookBar", (auto,), {"monitor_interval": 0})


class Progress:
    """Shows the progress of a run, or of a fleet by its aggregate numbers: a bar on a terminal, else about 20 lines.

    Progress is counted in gradient evaluations, `total` of them in all, `initial` of them done before (a resumed run).
    With `percent` False, errors are shown as numbers that are not fractions (RMSE of a regression). `enabled` None
    draws a bar if `stream` (default stderr) is a terminal or in a notebook, True always, and False shows nothing.
    """

    def __init__(
        self,
        total: int,
        description: str,
        stream: TextIO | None = None,
        enabled: bool | None = None,
        initial: int = 0,
        percent: bool = True,
    ) -> None:
        self._total = total
        self._description = description
        self._stream = Unfailing(sys.stderr if stream is None else stream)
        self._initial = initial
        self.percent = percent
        self._evaluations = initial
        self._train_loss: float | None = None
        self._validation_error: float | None = None
        self._started = time.monotonic()
        self._redraw_at = self._started
        self._shown: int | None = None
        self._bar: tqdm | None = None  # pyright: ignore[reportMissingTypeArgument]
        self._silent = enabled is False
        in_notebook = stream is None and _in_notebook()
        if enabled or (enabled is None and (in_notebook or _has_room(self._stream))):
            self._bar = (_bar_class() if in_notebook else _Bar)(
                total=total,
                initial=initial,
                desc=description,
                file=self._stream,  # pyright: ignore[reportArgumentType]
                unit=" grad",
                unit_scale=True,
                mininterval=0.0,  # update() decides when to redraw
                miniters=0,
                dynamic_ncols=True,
                bar_format=BAR_FORMAT,
            )

    def update(self, evaluations: int, train_loss: float | None = None, validation_error: float | None = None) -> None:
        """Set the total number of gradient evaluations done and, if they were measured, loss and error (a fraction).

        The call is cheap: the display changes only when a redraw or a line is due.
        """
        self._evaluations = evaluations
        if train_loss is not None:
            self._train_loss = train_loss
        if validation_error is not None:
            self._validation_error = validation_error
        if self._bar is not None:
            if time.monotonic() >= self._redraw_at:
                self._redraw_at = time.monotonic() + REDRAW_SECONDS
                self._draw(self._bar)
        elif self._shown is None or (evaluations - self._shown) * LINES >= self._total:
            self._print()

    def add(self, evaluations: int, train_loss: float | None = None, validation_error: float | None = None) -> None:
        """Add to the number of gradient evaluations done; otherwise the same as update."""
        self.update(self._evaluations + evaluations, train_loss, validation_error)

    def close(self) -> None:
        """Show the last state and end the line of the bar; may be called twice."""
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.close()
        elif self._shown != self._evaluations:
            self._print()

    def _draw(self, bar: tqdm) -> None:  # pyright: ignore[reportMissingTypeArgument]
        bar.set_postfix_str(", ".join(self._numbers()), refresh=False)
        bar.update(self._evaluations - bar.n)

    def _print(self) -> None:
        self._shown = self._evaluations
        if self._silent:
            return
        elapsed = time.monotonic() - self._started
        done = f"{self._evaluations / self._total:4.0%}  {self._evaluations:,}/{self._total:,}"
        new = self._evaluations - self._initial
        rate = [_rate(new / elapsed)] if new > 0 and elapsed > 0 else []
        self._stream.write(", ".join([f"{self._description} {done}", *rate, *self._numbers()]) + "\n")
        self._stream.flush()

    def _numbers(self) -> list[str]:
        numbers = []
        if self._train_loss is not None:
            numbers.append(f"loss {self._train_loss:.4g}")
        if self._validation_error is not None:
            numbers.append(f"val. {_error_name(self.percent)} {_error(self._validation_error, self.percent)}")
        return numbers


def _has_room(stream: Unfailing) -> bool:
    """Whether the stream is a terminal of known size: tqdm draws nothing on one of size 0 x 0."""
    with contextlib.suppress(OSError):  # a stream without a descriptor that claims to be a terminal
        return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 0
    return stream.isatty()


class SweepProgress(Progress):
    """Shows the progress of a sweep in gradient evaluations, and the best mean error of the completed settings.

    Fleets that train in this process call `add`; `done` counts the jobs that have ended, in this process or another
    one. `expect` sets the total numbers of runs and evaluations, as far as they are known.
    """

    def __init__(self, stream: TextIO | None = None, enabled: bool | None = None) -> None:
        super().__init__(1, "sweep", stream, enabled)
        self._runs_done = self._runs = self._evaluations_done = 0
        self.under_way = 0
        """Gradient evaluations that other processes have reported for runs that have not ended."""
        self._printed = ""  # description (number of runs done) in the last line

    def expect(self, runs: int, evaluations: int) -> None:
        """Set the number of runs that are still to be done, and the sum of their budgets."""
        self._runs = self._runs_done + runs
        self._total = max(self._evaluations_done + evaluations, 1)
        if self._bar is not None:
            self._bar.total = self._total
            if (widgets := getattr(self._bar, "container", None)) is not None:  # in a notebook: text, bar, text
                widgets.children[1].max = self._total
        self._describe()

    def done(self, runs: int, evaluations: int) -> None:
        """Count runs that have ended, with the sum of their budgets, even if they did not spend all of it."""
        self._runs_done += runs
        self._evaluations_done += evaluations
        self._describe()
        self.update(self._evaluations_done + self.under_way)

    def update(self, evaluations: int, train_loss: float | None = None, validation_error: float | None = None) -> None:
        """Set the number of gradient evaluations done by the sweep; loss and error of single runs are not shown."""
        super().update(evaluations)

    def best(self, mean_error: float | None) -> None:
        """Set the lowest mean validation error of the settings whose jobs have all ended."""
        self._validation_error = mean_error

    def close(self) -> None:
        """Show the last state, including the runs that have ended since the last line; may be called twice."""
        if self._printed != self._description:
            self._shown = None
        super().close()

    def _print(self) -> None:
        super()._print()
        self._printed = self._description

    def _describe(self) -> None:
        self._description = f"{self._runs_done}/{self._runs} runs"
        if self._bar is not None:
            self._bar.set_description_str(self._description, refresh=False)

    def _numbers(self) -> list[str]:
        numbers = (
            [] if self._validation_error is None else [f"best mean {_error(self._validation_error, self.percent)}"]
        )
        elapsed, new = time.monotonic() - self._started, self._evaluations - self._initial
        if self._bar is None and new > 0:  # the bar shows the remaining time itself
            numbers.insert(0, f"{tqdm.format_interval(elapsed * (self._total - self._evaluations) / new)} left")
        return numbers


def summary(
    *,
    optimizer: str,
    data: str,
    model: str,
    parameters: int,
    evaluations: int,
    seconds: float,
    folder: Path | None = None,
    train_loss: float | None = None,
    validation_error: float | None = None,
    test_error: float | None = None,
    test_loss: float | None = None,
    best_test_error: float | None = None,
    best_at: int | None = None,
    diverged_at: int | None = None,
    last_finite_loss: float | None = None,
    guess_error: float | None = None,
    regime: str | None = None,
    advice: str | None = None,
    percent: bool = True,
) -> str:
    """Return a summary of a finished run, one screen of text; arguments that are None are left out.

    Errors are fractions, shown in per cent, or, with percent=False, the RMSE of a regression.

    `best_test_error` is the test error of the best parameters by validation, found after `best_at` gradient
    evaluations. `diverged_at` is the gradient evaluation at which the run became non-finite. `guess_error` is the
    validation error of the best constant prediction, given only if the run is no better than that; `regime` says to
    what extent local_entropy was in the regime of its theory; `advice` says what to try.
    """
    best = None if best_test_error is None else _error(best_test_error, percent)
    if best is not None and best_at is not None:
        best += f" at {best_at:,} gradient evaluations"
    diverged = None if diverged_at is None else f"at gradient evaluation {diverged_at:,}"
    if diverged is not None and last_finite_loss is not None:
        diverged += f", last finite loss {last_finite_loss:.4g}"
    constant = "the most frequent class" if percent else "the mean of the targets"
    guessing = None
    if guess_error is not None:
        guess = f"validation {_error_name(percent)} {_error(guess_error, percent)}"
        guessing = f"no better than guessing: predicting {constant} has {guess}"
    where = None if folder is None else shown_path(folder)
    setting: dict[str, str | None] = {
        "optimizer": optimizer,
        "data": data,
        "model": f"{model}, {parameters:,} parameters",
        "gradient evaluations": f"{evaluations:,} in {_duration(seconds)}"
        + (f" ({_rate(evaluations / seconds)})" if seconds > 0 else ""),
    }
    outcome = {
        "DIVERGED": diverged,
        "final train loss": None if train_loss is None else f"{train_loss:.4g}",
        f"validation {_error_name(percent)}": None if validation_error is None else _error(validation_error, percent),
        f"test {_error_name(percent)}": None if test_error is None else _error(test_error, percent),
        "test loss": None if test_loss is None else f"{test_loss:.4g}",
        "best by validation": None if best is None else f"test {_error_name(percent)} {best}",
        "regime": regime,
        "NOT LEARNT": guessing,
        "advice": advice,
    }
    files = {"folder": where, "show curves with": f"tensorboard --logdir {shlex.quote(where or '')}"}
    rule = "-" * _width()
    blocks = [block for block in map(_block, (setting, outcome)) if block]
    if where is not None:  # never wrapped, so that it can be copied
        blocks.append("\n".join(f"  {label:<{LABEL_WIDTH}}{text}" for label, text in files.items()))
    return "\n".join([rule, "\n\n".join(blocks), rule])


def sweep_summary(
    *,
    states: Mapping[str, int],
    failed: Sequence[tuple[str, str]],
    folder: Path,
    unsuccessful: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType({}),
    done_before: int = 0,
    elsewhere: Mapping[str, int] | None = None,
    settings: str = "",
    best_folder: Path | None = None,
    progress: float | None = None,
) -> str:
    """Return the summary of a sweep: its settings, the number of jobs in each state, and the failed jobs with reasons.

    Jobs that failed for reasons that differ in numbers alone are reported together; likewise those that diverged or
    did not learn (unsuccessful: label -> jobs and reasons).

    done_before: number of jobs that had ended before this command. elsewhere: number of jobs that each other process
    trains. settings is a table, best_folder the folder of the best run of the best setting, progress the fraction of
    the work that is done.
    """
    rule = "-" * _width()
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    lines = [_entry("jobs", f"{sum(states.values())}: {counts}")]
    if progress is not None and progress < 1:
        lines.append(_entry("progress", f"{100 * progress:.0f} % of the gradient evaluations"))
    if done_before:
        over = sum(states.get(state, 0) for state in ("completed", "stopped early", "diverged"))
        lines.append(_entry("trained before", f"{done_before}, trained now {over - done_before}"))
    lines += [_entry("in other processes", f"{count} by {process}") for process, count in (elsewhere or {}).items()]
    for label, pairs in {"failed": failed, **unsuccessful}.items():
        lines += [_entry(label, text) for text in _grouped(pairs)]
    where = shown_path(folder)
    files = {} if best_folder is None else {"best run": shown_path(best_folder)}
    files |= {"folder": where}
    files |= {"compare with": f"burgersgd compare {shlex.quote(where)}"} if settings else {}
    files |= {"show curves with": f"tensorboard --logdir {shlex.quote(where)}"}
    table = "\n".join(f"  {label:<{LABEL_WIDTH}}{text}" for label, text in files.items())
    return "\n".join([rule, *([settings, ""] if settings else []), *lines, "", table, rule])


def _grouped(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return one text for all jobs whose reasons differ in numbers alone; it names the first of them."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for job, reason in pairs:
        groups.setdefault(NUMBER.sub("#", reason), []).append((job, reason))
    return [
        f"{job}: {reason}" if len(group) == 1 else f"{len(group)} jobs, the first is {job}: {reason}"
        for group in groups.values()
        for job, reason in group[:1]
    ]


def _block(entries: dict[str, str | None]) -> str:
    return "\n".join(_entry(label, text) for label, text in entries.items() if text is not None)


def _entry(label: str, text: str) -> str:
    """Return label and text, wrapped with a hanging indent; long words, such as paths to be copied, are not broken."""
    return textwrap.fill(
        text,
        _width(),
        initial_indent=f"  {label:<{LABEL_WIDTH}}",
        subsequent_indent=" " * (LABEL_WIDTH + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    """Return the width of a summary: that of the terminal, where it is narrower than WIDTH but fits a few words."""
    return max(LABEL_WIDTH + 18, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def shown_path(folder: Path) -> str:
    """Return the path relative to the current folder if the folder lies below it, else the absolute path."""
    whole = Path(folder).absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def _error_name(percent: bool) -> str:
    """Return the name of the error: "error", or "RMSE" in regression."""
    return "error" if percent else "RMSE"


def _error(error: float, percent: bool) -> str:
    return _percent(error) if percent else f"{error:.4g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _rate(per_second: float) -> str:
    return f"{tqdm.format_sizeof(per_second)} grad/s"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else tqdm.format_interval(seconds)
