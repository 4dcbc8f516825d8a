"""Runs a study: search, choice, two stages of tests, and the report. Finished runs are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from burgersgd.analysis.compare import Comparison, compare
from burgersgd.analysis.question import Question
from burgersgd.analysis.report import report
from burgersgd.analysis.runs import ONLY_WITH, SEEDS, Runs, load
from burgersgd.analysis.search_tables import profile_table, tuning_tables
from burgersgd.analysis.statistics import ALPHA
from burgersgd.analysis.tables import Form, Table, all_notes, as_markdown, as_text, form_of, tables_of
from burgersgd.recording.files import RunFolderError, read_text, replacing
from burgersgd.schema import ConfigError, default_of, fields_of
from burgersgd.studies.cells import Cell, cells_of, sweep_of, train_sweep
from burgersgd.studies.config import StudyConfig, installed

SPEC = "study.yaml"
REPORT = "report.html"
SUMMARY = "summary.md"

Tell = Callable[[str], None]
Chosen = dict[str, dict[str, str]]
"""Optimizer -> key -> value."""


class Answer(NamedTuple):
    """The results of a study."""

    comparison: Comparison
    overview: Table
    stein: Table
    chosen: Table

    def __str__(self) -> str:
        """Return the tables for the terminal as text."""
        return "\n\n".join(map(as_text, (self.overview, self.stein, *tables_of(self.comparison))))


def run_study(study: StudyConfig, root: Path, command: str, tell: Tell = print, quiet: bool = False) -> Answer:
    """Train the unfinished runs of a study in its folder, write its report, and return the results.

    Every cell is checked before anything is written. Raises ConfigError (also if the folder holds another study),
    StudyStoppedError and Interrupted.
    """
    root, study = root.absolute(), installed(study, tell)
    cells = cells_of(study, root)
    searches = {cell: sweep_of(cell.search_words()) for cell in cells}
    if study.final:
        for cell in cells:
            sweep_of(cell.test_words({study.baseline: {}}, 1))  # checks the overrides
    keep_spec(study, root)
    chosen: dict[Cell, Chosen] = {}
    for i, cell in enumerate(cells):
        tell(f"search {i + 1} of {len(cells)}: {cell.name}")
        train_sweep(searches.pop(cell), cell.search_folder, quiet)
        chosen[cell] = cell.choose()
    for i, cell in enumerate(cells):
        tell(f"test {i + 1} of {len(cells)}: {cell.name}, {study.n0} seeds")
        train_sweep(sweep_of(cell.test_words(chosen[cell], study.n0)), cell.test_folder, quiet)
        n = cell.n_seeds()
        if n > study.n0:
            tell(f"test {i + 1} of {len(cells)}: {cell.name}, {n} seeds")
            train_sweep(sweep_of(cell.test_words(chosen[cell], n)), cell.test_folder, quiet)
    comparison = comparison_of(load(root / "test"), study)
    overview = overview_table(comparison, cells)
    answer = Answer(comparison, overview, stein_table(cells), choice_table(chosen))
    more = tuning_tables(comparison_of(load(root / "search"), study))
    profiles = profile_table(comparison)
    write(root, study, answer, more if profiles is None else [profiles, *more], command)
    return answer


def keep_spec(study: StudyConfig, root: Path) -> None:
    """Record the settings of the study. Raises ConfigError if the folder holds another study."""
    plain = {key: value for key, value in dataclasses.asdict(study).items() if key not in ("question", "quick")}
    try:
        recorded = yaml.safe_load(read_text(root / SPEC))
    except (RunFolderError, yaml.YAMLError):
        recorded = None
    if isinstance(recorded, dict):  # older records lack keys that were added later; they had the default values
        recorded = {key: recorded.get(key, default_of(fields_of(StudyConfig)[key])) for key in plain}
    if recorded is not None and recorded != plain:
        other = ", ".join(key for key in plain if recorded.get(key) != plain[key])
        raise ConfigError(f"{root}: the folder holds a study with different settings ({other}); choose another --name")
    root.mkdir(parents=True, exist_ok=True)
    with replacing(root / SPEC) as stream:
        stream.write(yaml.safe_dump(plain, sort_keys=False).encode())


def comparison_of(runs: Runs, study: StudyConfig) -> Comparison:
    """Return the comparison of optimizers within each cell; nothing is compared across cells."""
    differing = [key for key in runs.differing() if key not in SEEDS and not key.startswith("optimizer.")]
    within = tuple(key for key in differing if ONLY_WITH.get(key) not in differing)
    return compare(runs, Question(by=(*within, "optimizer.name"), within=within, baseline=study.baseline))


def overview_table(comparison: Comparison, cells: Sequence[Cell]) -> Table:
    """Return a table with one row per cell: each optimizer's mean test error and its difference to the baseline.

    A star means that the p-value of the paired test is below 0.05 after Holm's correction over all cells and
    optimizers; the last row counts the stars. Runs that are no better than guessing are counted, because a setting that
    was chosen with few seeds may fail with others.
    """
    study = cells[0].study
    names = [study.baseline, *(name for name in study.optimizers if name != study.baseline)]
    column, rows = comparison.by.index("optimizer.name"), []
    stars = {name: [0, 0] for name in names}
    blocks = {block.rows[0].runs[0].folder.parent.name: block for block in comparison.blocks}
    for cell in cells:
        block = blocks[cell.name]
        form, by_name = form_of(comparison, block), {row.key[column]: row for row in block.rows}
        shown = []
        for name in names:
            row, d = by_name[name], by_name[name].difference
            shown.append(form.number(row.mean))
            if d is not None:
                star = d.p_holm < ALPHA
                shown[-1] += f" ({form.number(d.mean, sign=True)}{'*' if star else ''})"
                if star:
                    stars[name][d.mean > 0] += 1
            shown[-1] += f", {row.n_lost} diverged" if row.n_lost else ""
            guessing = sum(run.status.get("no_better_than_guessing") is True for run in row.runs)
            shown[-1] += f", {guessing} guessing" if guessing else ""
        rows.append((cell.name, *shown, str(len(by_name[study.baseline].runs))))
    counts = ["" if name == study.baseline else "{}, {}".format(*stars[name]) for name in names]
    if len(rows) > 1:
        rows.append((f"with a star: better, worse (of {len(rows)})", *counts, ""))
    title = (
        f"Mean test error (%, in regression RMSE) and difference to {study.baseline}, paired;"
        f" * p < {ALPHA:g} by Holm over all {comparison.family}"
    )
    return Table(title, ("workload, budget, schedule", *names, "n"), tuple(rows))


def stein_table(cells: list[Cell]) -> Table:
    """Return a table of the differences to the baseline with Stein's intervals and their widths."""
    rows = []
    for cell in cells:
        form = Form(100, "%", 2) if load(cell.test_folder)[0].percent else Form(1, "", 4)
        for name, found in cell.stein().items():
            ends = form.interval(found.interval, sign=True)
            reached = "" if not found.width > cell.width * (1 + 1e-9) else "no"
            numbers = form.number(found.mean, sign=True), ends, form.number(found.width), reached
            rows.append((cell.name, name, f"{found.n0}, {found.n}", *numbers))
    baseline = cells[0].study.baseline
    title = f"Test error (%, in regression RMSE) minus that of {baseline}, in two stages (Stein), not adjusted"
    columns = ("workload, budget, schedule", "optimizer", "pairs n0, N", "difference", "95 % interval", "width")
    return Table(title, (*columns, "narrow enough"), tuple(rows))


def choice_table(chosen: Mapping[Cell, Chosen]) -> Table:
    """Return a table of the settings that were chosen on the validation part."""
    rows = []
    for cell, settings in chosen.items():
        for name, values in settings.items():
            words = " ".join(f"{key.removeprefix('optimizer.')}={value}" for key, value in values.items())
            rows.append((cell.name, name, words))
    study = next(iter(chosen)).study
    title = f"Chosen on validation, out of {study.trials} trials of {study.tuning_seeds} seeds each"
    return Table(title, ("workload, budget, schedule", "optimizer", "setting"), tuple(rows))


def write(root: Path, study: StudyConfig, answer: Answer, more: Sequence[Table], command: str) -> None:
    """Write report.html and summary.md into the folder of the study."""
    comparison = answer.comparison
    tables = [answer.overview, answer.stein, *tables_of(comparison), answer.chosen, *more]
    notes = "\n".join(f"- {line}" for line in all_notes(comparison))
    title = study.question or root.name
    summary = "\n\n".join([f"# {title}", f"`{command}`", *map(as_markdown, tables), notes]) + "\n"
    page = report(comparison, command, [answer.stein, answer.chosen, *more], title, [answer.overview])
    for name, content in ((REPORT, page), (SUMMARY, summary)):
        with replacing(root / name, lasting=False) as stream:
            stream.write(content.encode())
