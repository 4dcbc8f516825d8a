# pyright: reportAttributeAccessIssue=false
# (the stubs of scipy do not know what its tests return)
"""What is compared with what: rows, picks, pairs, families, refusals; numbers against scipy on the values written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from burgersgd.analysis.compare import Comparison, compare
from burgersgd.analysis.question import Question, RefusedError, depends_on_budget
from burgersgd.analysis.rows import Row
from burgersgd.analysis.runs import flat, load
from burgersgd.analysis.statistics import minimum_detectable
from burgersgd.analysis.tables import Form, as_csv, as_latex, as_markdown, fixed, form_of, tables_of
from burgersgd.cli import main
from tests.analysis.folders import write_run, write_sweep

INF = math.inf
SGD = [0.031, 0.027, 0.035, 0.030, 0.026, 0.033]
ENTROPY = [0.028, 0.026, 0.033, 0.031, 0.022, 0.029]
ADAMW = [0.041, 0.039, 0.038, 0.044, 0.040, 0.047]


def asked(root: Path | str, by: str = "optimizer.name", **question: Any) -> Comparison:
    return compare(load(root), Question(by=tuple(by.split(",")), **question))


def row(c: Comparison, label: str, block: int = 0) -> Row:
    return next(r for r in c.blocks[block].rows if r.label == label)


def test_a_row_has_the_statistics_of_its_values(tmp_path: Path) -> None:
    found = row(asked(write_sweep(tmp_path, {"sgd": SGD, "adamw": ADAMW})), "sgd")
    assert list(found.values.values()) == SGD
    assert found.mean == pytest.approx(np.mean(SGD))
    assert found.median == pytest.approx(np.median(SGD))
    assert found.sd == pytest.approx(np.std(SGD, ddof=1))
    assert found.interval == pytest.approx(stats.ttest_1samp(SGD, 0).confidence_interval())


def test_differences_are_paired_by_seed_and_adjusted_for_all_rows(tmp_path: Path) -> None:
    c = asked(write_sweep(tmp_path, {"sgd": SGD, "local_entropy": ENTROPY, "adamw": ADAMW}))
    entropy, adamw = (row(c, label).difference for label in ("local_entropy", "adamw"))
    assert row(c, "sgd").difference is None
    assert entropy is not None
    assert adamw is not None
    expected = stats.ttest_rel(ENTROPY, SGD)
    assert (entropy.test, entropy.n_pairs, entropy.n_unpaired) == ("paired t", 6, 0)
    assert entropy.mean == pytest.approx(np.mean(np.subtract(ENTROPY, SGD)))
    assert entropy.interval == pytest.approx(expected.confidence_interval())
    assert entropy.p == pytest.approx(expected.pvalue)
    assert entropy.p_holm == pytest.approx(max(expected.pvalue, 2 * adamw.p))
    assert adamw.p_holm == pytest.approx(2 * adamw.p)
    assert entropy.improvement == pytest.approx(stats.mannwhitneyu(SGD, ENTROPY).statistic / 36)
    error = np.std(np.subtract(ENTROPY, SGD), ddof=1) / math.sqrt(6)
    assert entropy.minimum_detectable == pytest.approx(minimum_detectable(float(error), 5, 0.05 / 2))


def test_pairs_are_found_by_seed_and_not_by_position(tmp_path: Path) -> None:
    for seed in range(12):
        write_run(tmp_path / f"a{seed}", {"seed": seed}, test_error=0.03 + 0.001 * seed)
        if seed % 2:
            chosen = {"seed": seed, "optimizer.name": "adamw"}
            write_run(tmp_path / f"b{seed:02}", chosen, test_error=0.03 + 0.001 * seed + 0.0001 * (seed % 3))
    d = row(asked(tmp_path), "adamw").difference
    assert d is not None
    assert (d.n_pairs, d.n_unpaired) == (6, 6)
    assert d.mean == pytest.approx(0.0001 * np.mean([seed % 3 for seed in range(1, 12, 2)]))
    assert any("6 runs have no partner" in note for note in asked(tmp_path).notes)


def test_without_pairs_the_test_is_welchs(tmp_path: Path) -> None:
    for seed, error in enumerate(SGD):
        write_run(tmp_path / f"a{seed}", {"seed": seed}, test_error=error)
    for seed, error in enumerate(ADAMW):
        write_run(tmp_path / f"b{seed}", {"seed": 100 + seed, "optimizer.name": "adamw"}, test_error=error)
    d = row(asked(tmp_path), "adamw").difference
    assert d is not None
    expected = stats.ttest_ind(ADAMW, SGD, equal_var=False)
    assert (d.test, d.n_pairs) == ("Welch", 0)
    assert d.p == pytest.approx(expected.pvalue)
    assert d.interval == pytest.approx(expected.confidence_interval())


def test_a_diverged_run_is_worse_than_any_other_and_ranks_its_row_last(tmp_path: Path) -> None:
    diverging = [0.001, 0.001, INF, 0.001, INF, 0.001]
    c = asked(write_sweep(tmp_path, {"sgd": SGD, "adamw": ADAMW, "langevin": diverging}))
    assert [r.label for r in c.blocks[0].rows] == ["sgd", "adamw", "langevin"]
    found = row(c, "langevin")
    assert (found.n_lost, len(found.finite), found.counts) == (2, 4, {"completed": 4, "diverged": 2})
    assert found.mean == pytest.approx(0.001)
    assert found.median == pytest.approx(0.001)
    d = found.difference
    assert d is not None
    assert d.test == "sign"
    assert d.p == pytest.approx(stats.binomtest(2, 6).pvalue)
    assert d.mean == pytest.approx(np.mean([0.001 - SGD[i] for i in (0, 1, 3, 5)]))
    assert d.improvement == pytest.approx(4 / 6)


def test_the_median_of_runs_that_mostly_diverged_is_infinite(tmp_path: Path) -> None:
    c = asked(write_sweep(tmp_path, {"sgd": SGD, "adamw": [0.02, INF, INF, 0.03]}))
    assert row(c, "adamw").median == INF
    assert "inf" in str(c)


def test_validation_picks_the_setting_and_its_test_error_is_reported(tmp_path: Path) -> None:
    for lr, validation, test in ((0.1, 0.05, 0.01), (0.3, 0.04, 0.03), (0.9, 0.02, 0.02)):
        for seed in range(3):
            state = "diverged" if lr == 0.9 and seed == 1 else "completed"
            chosen = {"optimizer.lr": lr, "seed": seed}
            write_run(
                tmp_path / f"{lr}-{seed}", chosen, state, validation_error=validation + seed / 1e3, test_error=test
            )
    c = asked(tmp_path)
    (found,) = c.blocks[0].rows
    assert (found.n_settings, found.mean) == (3, pytest.approx(0.03))
    assert c.picked_keys == ("optimizer.lr",)
    assert dict(found.settings[0])["optimizer.lr"] == 0.3
    assert len(asked(tmp_path, pick="none").blocks[0].rows[0].runs) == 9
    assert [r.label for r in asked(tmp_path, "optimizer.lr").blocks[0].rows] == ["lr=0.3", "lr=0.1", "lr=0.9"]


def test_one_lucky_seed_is_not_picked(tmp_path: Path) -> None:
    write_run(tmp_path / "lucky", {"optimizer.lr": 0.7}, validation_error=0.001)
    for seed in range(3):
        write_run(tmp_path / f"{seed}", {"optimizer.lr": 0.2, "seed": seed}, validation_error=0.05)
    c = asked(tmp_path)
    assert dict(c.blocks[0].rows[0].settings[0])["optimizer.lr"] == 0.2
    assert any("1 settings with fewer than 3 runs were not considered" in note for note in c.notes)


def test_picking_by_test_error_is_refused_unless_forced_and_then_labelled(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"sgd": SGD})
    for pick in ("test_error", "test_loss", "best_test_error"):
        with pytest.raises(RefusedError, match=f"pick={pick}: must be a metric of the validation part"):
            asked(tmp_path, pick=pick)
    c = asked(tmp_path, pick="test_error", force=True)
    assert c.warnings[0].startswith("FORCED: pick=test_error")
    assert c.warnings[0] in " ".join(str(c).split())


def test_numbers_that_were_picked_by_are_called_optimistic(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path / f"{lr}", {"optimizer.lr": lr})
    assert any("optimistic" in note for note in asked(tmp_path, metric="validation_error").notes)
    assert not any("optimistic" in note for note in asked(tmp_path).notes)


def test_with_several_splits_the_split_is_the_unit_and_tuned_on_its_own(tmp_path: Path) -> None:
    validation = {(0.1, 0): 0.01, (0.3, 0): 0.02, (0.1, 1): 0.03, (0.3, 1): 0.02}
    for (lr, split), error in validation.items():
        for seed in range(2):
            chosen = {"optimizer.lr": lr, "dataset.seed": split, "seed": seed}
            write_run(
                tmp_path / f"{lr}{split}{seed}", chosen, validation_error=error, test_error=lr + split + seed / 10
            )
    c = asked(tmp_path)
    (found,) = c.blocks[0].rows
    assert found.values == {0: pytest.approx(0.15), 1: pytest.approx(1.35)}
    assert [dict(s)["optimizer.lr"] for s in found.settings] == [0.1, 0.3]
    assert any("n counts splits" in note for note in c.notes)
    assert "2 settings" in str(c)


def test_several_data_sets_make_a_table_each_and_one_family(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", {"sgd": SGD, "adamw": ADAMW})
    write_sweep(tmp_path / "b", {"sgd": ADAMW, "adamw": SGD[:5]}, **{"dataset.name": "mnist1d"})
    with pytest.raises(RefusedError, match=r"use different data \(dataset.name differ\): add dataset.name to --by"):
        asked(tmp_path)
    c = asked(tmp_path, "dataset.name,optimizer.name")
    assert [block.label for block in c.blocks] == ["dataset.name=digits", "dataset.name=mnist1d"]
    assert (c.family, c.by, c.strata) == (2, ("optimizer.name",), ("dataset.name",))
    better = [row(c, "adamw", block).difference for block in (0, 1)]
    assert c.improvement[("adamw",)] == pytest.approx(np.mean([d.improvement for d in better if d is not None]))
    forced = asked(tmp_path, force=True)
    assert "use different data" in forced.warnings[0]
    assert asked(tmp_path, where={"dataset.name": "digits"}).family == 1


def test_unlike_digests_of_the_same_data_are_refused(tmp_path: Path) -> None:
    for seed, digest in enumerate("aab"):
        write_run(tmp_path / f"{seed}", {"seed": seed}, data=12 * digest)
    with pytest.raises(RefusedError, match=r"trained on different data .2 digests with dataset.seed=0"):
        asked(tmp_path)
    write_run(tmp_path / "c", {"seed": 3})  # recorded before there were digests
    assert "digests" in asked(tmp_path, force=True).warnings[0]


def test_runs_of_several_versions_of_the_code_are_called_so(tmp_path: Path) -> None:
    for seed, code in enumerate(("burgersgd 0.1.0 aaa", "burgersgd 0.2.0 bbb", "burgersgd 0.2.0 bbb")):
        write_run(tmp_path / f"{seed}", {"seed": seed}, code=code)
    assert any(
        "2 versions of the code: burgersgd 0.1.0 aaa, burgersgd 0.2.0 bbb" in note for note in asked(tmp_path).notes
    )
    assert not any("versions" in note for note in asked(tmp_path, where={"seed": ["1", "2"]}).notes)


def test_unlike_budgets_are_refused_but_for_the_rest_of_a_cycle(tmp_path: Path) -> None:
    entropy = {"name": "local_entropy", "lr": 0.3, "inner_steps": 20, "burn_in": 5}
    write_run(tmp_path / "a", {"trainer.budget": 610}, budget=610)
    write_run(tmp_path / "b", {"trainer.budget": 610, "optimizer": entropy}, budget=600)
    assert len(asked(tmp_path).blocks[0].rows) == 2
    write_run(tmp_path / "c", {"trainer.budget": 625}, budget=625)
    with pytest.raises(RefusedError, match=r"budgets differ .600 to 625 gradient evaluations.: use --at budget=600"):
        asked(tmp_path)
    assert "budgets differ" in asked(tmp_path, force=True).warnings[0]
    assert [b.label for b in asked(tmp_path, "optimizer.name,trainer.budget").blocks] == [
        "trainer.budget=610",
        "trainer.budget=625",
    ]


def test_forced_runs_of_unlike_budgets_make_no_pairs(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", {"seed": seed}, test_error=0.02 + seed / 1e3)
        chosen = {"seed": seed, "optimizer.name": "adamw", "trainer.budget": 900}
        write_run(tmp_path / f"b{seed}", chosen, test_error=0.02 + seed / 1e4)
    d = row(asked(tmp_path, force=True), "adamw").difference
    assert d is not None
    assert (d.test, d.n_pairs) == ("Welch", 0)


CURVE = [(0, 0.9), (100, 0.5), (200, 0.06), (300, 0.08), (600, 0.05)]


def curve(shift: float = 0.0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"evaluations": e, "validation_error": v + shift, "train_loss": v} for e, v in CURVE]
    return [*rows[:3], {"evaluations": 250, "train_loss": 0.3}, *rows[3:]]


def test_values_at_a_budget_come_from_the_last_validation_before_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rows=curve())
    write_run(tmp_path / "b", {"seed": 1, "trainer.budget": 900}, state="interrupted", rows=curve(0.01))
    write_run(tmp_path / "c", {"seed": 2}, state="diverged", rows=curve()[:2])
    write_run(tmp_path / "d", {"seed": 3}, state="interrupted", rows=curve()[:3])
    c = asked(tmp_path, metric="validation_error", at="budget=299", pick="none")
    assert c.blocks[0].rows[0].values == {0: pytest.approx(0.06), 1: pytest.approx(0.07), 2: INF}
    assert "after 299" in str(c)
    c = asked(tmp_path, metric="train_loss", at="budget=250", pick="none")
    assert c.blocks[0].rows[0].values == {0: 0.3, 1: 0.3, 2: INF}


def test_the_cost_of_a_target_is_infinite_where_it_is_missed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rows=curve())
    write_run(tmp_path / "b", {"seed": 1}, rows=curve(0.02))
    write_run(tmp_path / "c", {"seed": 2}, state="interrupted", rows=curve(0.02))
    write_run(tmp_path / "d", {"seed": 3}, state="interrupted", rows=curve())
    for target in ("target=0.06", "target=6%"):
        c = asked(tmp_path, metric="validation_error", at=target, pick="none")
        assert c.blocks[0].rows[0].values == {0: 200, 1: INF, 3: 200}
        assert "gradient evaluations to validation error 6 %" in " ".join(
            cell for table in tables_of(c) for cell in table.columns
        )


def test_values_at_best_are_those_of_the_lowest_validation_error(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rows=curve(), best_test_error=0.07, best_validation_error=0.05, best_at=300)
    for metric, value in (("test_error", 0.07), ("validation_error", 0.05), ("train_loss", 0.08)):
        assert asked(tmp_path, metric=metric, at="best").blocks[0].rows[0].values == {0: value}


def test_a_schedule_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    cosine = {"schedule": {"name": "cosine", "warmup": 0.0, "final": 0.0}}
    write_run(tmp_path / "a", cosine, rows=curve())
    with pytest.raises(
        RefusedError, match=r"at=budget=300 is before the end of .* schedule=cosine is then not finished"
    ):
        asked(tmp_path, metric="validation_error", at="budget=300")
    assert asked(tmp_path, metric="validation_error", at="budget=600").blocks[0].rows[0].values == {0: 0.05}
    assert asked(tmp_path, metric="validation_error", at="budget=300", force=True).warnings


def test_what_depends_on_the_budget_is_what_the_trainer_says() -> None:
    import dataclasses

    from burgersgd.config import (
        CosineScheduleConfig,
        LinearScheduleConfig,
        LocalEntropyConfig,
        PaperLiteralConfig,
        ScheduleConfig,
        StepScheduleConfig,
        TrainConfig,
    )
    from burgersgd.run_record import depends_on_budget as of_the_trainer

    schedules = [ScheduleConfig(), ScheduleConfig(warmup=0.2), StepScheduleConfig(), LinearScheduleConfig()]
    schedules += [CosineScheduleConfig(), CosineScheduleConfig(warmup=0.2)]
    configs = [TrainConfig(schedule=schedule) for schedule in schedules]
    configs += [TrainConfig(optimizer=LocalEntropyConfig(nu_annealing=kind)) for kind in ("constant", "cosine")]
    configs += [TrainConfig(optimizer=PaperLiteralConfig(period=period)) for period in (None, 3)]
    for config in configs:
        assert depends_on_budget(flat(dataclasses.asdict(config))) == of_the_trainer(config)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"by": ("optimizer.gama",)}, "optimizer.gama: none of the 6 runs has this key; they differ in seed"),
        ({"where": {"seed": "17"}}, "where seed=17: none of the 6 runs has these settings"),
        ({"where": {"seed": ["17", "18"]}}, "where seed=17,18: none of the 6 runs has these settings"),
        ({"metric": "tset_error"}, "metric=tset_error: must be one of .*test_error"),
        (
            {"metric": "test_error", "at": "budget=300"},
            "metric=test_error: is measured only at the end .*validation_error",
        ),
        ({"metric": "test_loss", "at": "best"}, "metric=test_loss: is measured only at the end"),
        ({"at": "budget=0"}, "at=budget=0: N must be a whole number"),
        ({"at": "target"}, "at=target: must be end, best, budget=N or target=E"),
        ({"at": "budget=3%"}, "at=budget=3%: must be"),
        ({"baseline": "adam"}, "baseline=adam: must match exactly one row, matches 0 of"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_line(tmp_path: Path, question: dict[str, Any], message: str) -> None:
    write_sweep(tmp_path, {"sgd": SGD})
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        compare(load(tmp_path), Question(**question))
    assert "\n" not in str(raised.value)


def test_an_unknown_metric_is_refused_also_where_runs_diverged(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"sgd": [0.1, math.inf]})
    with pytest.raises(ValueError, match="metric=tset_error: must be one of"):
        asked(tmp_path, metric="tset_error")
    write_sweep(tmp_path / "all", {"adamw": [math.inf, math.inf]})
    assert asked(tmp_path / "all").blocks[0].rows[0].n_lost == 2


def test_runs_that_are_not_finished_are_counted_and_left_out(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"sgd": SGD})
    for i, state in enumerate(("interrupted", "running", "failed", "pruned")):
        write_run(tmp_path / state, {"seed": 20 + i}, state)
    c = asked(tmp_path)
    assert "6 of 10" in str(c)
    assert any("2 runs are not finished" in note for note in c.notes)
    with pytest.raises(ValueError, match="none of the 1 runs is finished"):
        asked(tmp_path / "running")


def test_a_baseline_is_named_by_the_values_of_its_row(tmp_path: Path) -> None:
    for lr in (0.03, 0.3):
        write_sweep(tmp_path / f"{lr}", {"sgd": SGD, "adamw": ADAMW}, **{"optimizer.lr": lr})
    both = "optimizer.name,optimizer.lr"
    for words in ("sgd,3e-1", "optimizer.lr=0.3,optimizer.name=sgd", "sgd lr=0.30"):
        assert asked(tmp_path, both, baseline=words).baseline == ("sgd", 0.3)
    with pytest.raises(ValueError, match=r"baseline=sgd: must match exactly one row, matches 2 of: sgd lr=0.03; "):
        asked(tmp_path, both, baseline="sgd")
    assert asked(tmp_path, both).baseline is None


def test_the_family_is_that_of_all_rows_whatever_is_shown(tmp_path: Path) -> None:
    for lr in (0.03, 0.1, 0.3):
        errors = {"sgd": SGD, "local_entropy": [e + lr / 1e3 for e in ENTROPY]}
        write_sweep(tmp_path / f"{lr}", errors, **{"optimizer.lr": lr})
    by, question = "optimizer.name,optimizer.lr", {"baseline": "sgd,0.3"}
    whole = asked(tmp_path, by, **question)
    shown = asked(tmp_path, by, where={"optimizer.lr": "0.3"}, **question)
    assert (whole.family, shown.family, len(shown.blocks[0].rows)) == (5, 5, 2)
    in_whole, in_shown = (row(c, "local_entropy lr=0.3").difference for c in (whole, shown))
    assert in_whole is not None
    assert in_shown is not None
    assert in_shown.p_holm == in_whole.p_holm > in_shown.p


def test_sgd_that_beats_what_contains_it_is_pointed_out(tmp_path: Path) -> None:
    better = [e - 0.004 + i % 2 / 1e3 for i, e in enumerate(ENTROPY)]
    c = asked(write_sweep(tmp_path / "a", {"sgd": better, "local_entropy": ENTROPY}))
    assert any("sgd beats local_entropy" in note and "number of trials is too small" in note for note in c.notes)
    c = asked(write_sweep(tmp_path / "b", {"sgd": ENTROPY, "local_entropy": better}))
    assert not any("beats" in note for note in c.notes)
    c = asked(write_sweep(tmp_path / "c", {"sgd": SGD, "local_entropy": [*SGD[:5], 0.0331]}))
    assert not any("beats" in note for note in c.notes)
    c = asked(write_sweep(tmp_path / "d", {"sgd": better, "local_entropy": [INF] * 6}))
    assert any("sgd beats local_entropy" in note for note in c.notes)
    assert not any("beats" in note for note in asked(tmp_path / "d", "optimizer.name,optimizer.lr").notes)


def test_the_note_on_inclusion_counts_the_settings_that_were_tried(tmp_path: Path) -> None:
    better = [e - 0.004 + i % 2 / 1e3 for i, e in enumerate(ENTROPY)]
    for lr in (0.1, 0.2, 0.3):
        errors = {"local_entropy": [e + lr / 1e3 for e in ENTROPY]} | ({"sgd": better} if lr == 0.1 else {})
        write_sweep(tmp_path / f"{lr}", errors, **{"optimizer.lr": lr})
    write_sweep(tmp_path / "more", {"sgd": [e + 0.1 for e in better]}, **{"optimizer.lr": 0.4})
    (note,) = [note for note in asked(tmp_path).notes if "sgd beats local_entropy" in note]
    assert note.endswith("the search space or the number of trials is too small (3 settings tried against 2)")
    (note,) = [note for note in asked(tmp_path / "0.1").notes if "sgd beats local_entropy" in note]
    assert note.endswith("the search space or the number of trials is too small")


def test_runs_that_repeat_one_another_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", test_error=0.2, updated="2026-11-26T10")
    write_run(tmp_path / "b", {"run_name": "again"}, test_error=0.3, updated="2026-11-26T11")
    write_run(tmp_path / "c", {"output_root": "x"}, state="failed", updated="2026-11-26T12")
    c = asked(tmp_path)
    assert c.blocks[0].rows[0].values == {0: 0.3}
    assert any("2 runs repeat others" in note for note in c.notes)


def test_one_run_gives_no_estimate_of_the_spread(tmp_path: Path) -> None:
    c = asked(write_sweep(tmp_path, {"sgd": SGD[:1], "adamw": ADAMW[:1]}))
    assert any("n = 1, so the spread is unknown" in note for note in c.notes)
    d = row(c, "adamw").difference
    assert d is not None
    assert (d.test, d.mean) == ("", pytest.approx(0.01))
    assert "nan" not in str(c)


def test_the_standard_error_of_the_test_part_is_reported(tmp_path: Path) -> None:
    errors = [float(np.float32(k / 359)) for k in (6, 5, 8, 7)]
    c = asked(write_sweep(tmp_path, {"sgd": errors}))
    assert c.blocks[0].n_test == 359
    expected = 100 * math.sqrt(6.5 / 359 * (1 - 6.5 / 359) / 359)
    assert any(
        f"359 test examples; with others, the standard error is {expected:.2g} points" in note for note in c.notes
    )
    write_run(tmp_path / "x", {"seed": 9}, n_test=1000)
    assert asked(tmp_path, where={"seed": "9"}).blocks[0].n_test == 1000


def test_a_metrics_file_that_is_damaged_leaves_out_its_run_with_a_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rows=curve())
    damaged = write_run(tmp_path / "b", {"seed": 1}, rows=curve())
    text = damaged.joinpath("metrics.csv").read_text().splitlines()
    damaged.joinpath("metrics.csv").write_text("\n".join([*text[:3], text[3][:3], *text[4:]]) + "\n")
    write_run(tmp_path / "c", {"seed": 2}, rows=curve()).joinpath("metrics.csv").write_text("")
    other = write_run(tmp_path / "d", {"seed": 3}, rows=[{"evaluations": 600, "accuracy": 0.3}])
    c = asked(tmp_path, metric="train_loss")
    assert c.blocks[0].rows[0].values == {0: 0.05}
    assert sum(str(damaged) in note for note in c.notes) == 1
    assert any("the first line must name the columns" in note for note in c.notes)
    assert any(f"{other}: train_loss has no value" in note for note in c.notes)
    assert len(asked(tmp_path).blocks[0].rows[0].values) == 4


def test_regression_errors_are_no_percentages(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"sgd": [0.0123, 0.0131]})
    for path in tmp_path.glob("*/status.json"):
        path.write_text(path.read_text().replace("classification", "regression"))
    shown = str(asked(tmp_path))
    assert "%" not in shown.replace("95 %", "")
    assert "RMSE" in shown
    assert "0.01270" in shown


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(0.125, 2, "0.13"), (-0.125, 2, "-0.13"), (2.5, 0, "3"), (-0.001, 2, "0.00"), (1e-7, 9, "0.000000100")],
)
def test_half_is_rounded_away_from_zero(value: float, decimals: int, text: str) -> None:
    assert fixed(value, decimals) == text


def test_the_command_prints_tables_json_and_one_line_for_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "outputs/multirun/cmp", {"sgd": SGD, "adamw": [*ADAMW[:5], INF]})
    assert main(["compare", "cmp", "--by", "optimizer.name", "--where", "seed=0,1,2,5"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 4" in shown
    assert "minus sgd" in shown
    assert main(["compare", "cmp", "--by", "optimizer.name", "--json", "--where", "seed=0,1,2,3,4,5"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (sgd, adamw) = answer["rows"]
    assert answer["question"]["where"] == {"seed": ["0", "1", "2", "3", "4", "5"]}
    assert sgd["values"] == {str(i): e for i, e in enumerate(SGD)}
    assert adamw["values"]["5"] == "inf"
    assert (adamw["optimizer.name"], adamw["diverged"], adamw["test"]) == ("adamw", 1, "sign")
    for words in (["compare", "nowhere"], ["compare", "cmp", "--where", "seed"], ["compare", "cmp", "--by", "x"]):
        assert main(words) == 2
        errors = capsys.readouterr()
        assert errors.out == ""
        assert errors.err.startswith("burgersgd: error: ")
        assert errors.err.count("\n") == 1


def test_seconds_are_called_those_of_the_fleet(tmp_path: Path) -> None:
    c = asked(write_sweep(tmp_path, {"sgd": SGD}), metric="seconds")
    assert c.blocks[0].rows[0].mean == 2.5
    assert "the seconds of a run are those of its whole fleet" in " ".join(str(c).split())


def test_tables_are_written_as_markdown_latex_and_csv(tmp_path: Path) -> None:
    c = asked(write_sweep(tmp_path, {"sgd": SGD, "local_entropy": ENTROPY}))
    values, differences = tables_of(c)
    assert as_markdown(values).splitlines()[2].startswith("| local_entropy | 6 | 2.82 | 2.41 to 3.22 |")
    assert as_latex(differences).splitlines()[4].startswith(r"local\_entropy & 6 & -0.22 & ")
    assert r"\%" in as_latex(differences)
    header, first, *_ = as_csv(c).splitlines()
    record = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(record["mean"]) == pytest.approx(np.mean(ENTROPY))
    assert float(record["p"]) == pytest.approx(stats.ttest_rel(ENTROPY, SGD).pvalue)


@pytest.mark.parametrize(
    ("means", "decimals"), [((12.7, math.nan, 0.0, 1300.0, 0.3), 2), ((0.0417,), 5), ((25_000.0,), 0), ((0.0,), 3)]
)
def test_a_metric_without_a_unit_is_shown_to_four_digits_of_a_typical_row(
    means: tuple[float, ...], decimals: int
) -> None:
    c: Any = SimpleNamespace(at=SimpleNamespace(kind="budget"), question=SimpleNamespace(metric="test_loss"))
    block: Any = SimpleNamespace(percent=False, rows=[SimpleNamespace(mean=mean) for mean in means])
    assert form_of(c, block) == Form(1, "", decimals)
