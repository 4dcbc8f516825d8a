"""The end of the runs of a fleet: their last measurements and results, and the records of both."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from burgersgd.build.prepared import Prepared
from burgersgd.predictor import network_at
from burgersgd.recording.environment import code_version
from burgersgd.recording.new_folders import LOG
from burgersgd.recording.run_log import log_once
from burgersgd.result import Result
from burgersgd.run_record import RunRecord, make_lasting_together
from burgersgd.training.best import Best
from burgersgd.training.evaluation import Evaluator, is_guessing
from burgersgd.training.fleet import Fleet, Position
from burgersgd.training.regime import Regime, regimes
from burgersgd.training.stability import Settings, divergence_hint, learning_hint, sampled_settings

_RECORDED = (
    "task",
    "evaluations",
    "seconds",
    "test_error",
    "test_loss",
    "validation_error",
    "validation_loss",
    "best_validation_error",
    "best_test_error",
    "best_at",
    "last_loss",
    "n_parameters",
    "guess_error",
    "no_better_than_guessing",
    "advice",
)
"""The fields of a result that status.json holds."""


@dataclass
class Ends:
    """Measures the runs of a fleet once their budget is spent, makes their results and records how they ended."""

    prepared: Prepared
    fleet: Fleet
    runs: Sequence[RunRecord]
    evaluators: Mapping[str, Evaluator]
    """Part of the data (validation, if there is such a part, and test) -> its evaluator."""
    best: Best
    position: Position
    choices: dict[str, Any]

    @property
    def alone(self) -> bool:
        """Whether there is only one run; a failure to record it is then an error."""
        return len(self.runs) == 1

    @functools.cached_property
    def measured(self) -> dict[str, list[float]]:
        """Loss and error of all runs at the last x, and test errors at the best x; recorded values if there are any."""
        checkpoints = [run.checkpoint or {} for run in self.runs]
        known = [c.get("measured") for c in checkpoints if c.get("evaluations") == self.fleet.evaluations]
        if len(known) == len(self.runs) and all(known):
            return {name: [values[name] for values in known if values is not None] for name in known[0] or {}}
        x, test = self.fleet.x, self.evaluators["test"]
        names = ("validation_loss", "validation_error", "best_test_error")  # NaN without a validation part
        measured = {name: [math.nan] * len(self.runs) for name in names}
        for part, evaluator in self.evaluators.items():
            loss, error = evaluator(x)
            measured |= {f"{part}_loss": loss.tolist(), f"{part}_error": error.tolist()}
        return measured if len(self.evaluators) < 2 else measured | {"best_test_error": test(self.best.x)[1].tolist()}

    @functools.cached_property
    def _guess(self) -> float:
        return self.prepared.data.guess_error(getattr(self.prepared.data, self._deciding_part))

    @property
    def _deciding_part(self) -> str:
        """The part of the data that decides whether a run diverged or is guessing: validation if there is one."""
        return next(iter(self.evaluators))

    @functools.cached_property
    def _regimes(self) -> list[Regime | None]:
        return regimes(self.fleet, self._start)

    @functools.cached_property
    def _settings(self) -> list[list[Settings]]:
        return sampled_settings(self.fleet)

    @functools.cached_property
    def _start(self) -> Float[Tensor, "runs d"]:
        """The points at which the runs started."""
        return self.prepared.initial(self.fleet.seeds)

    def result(self, i: int) -> Result:
        """Return the result of run i."""
        fleet, run, rows = self.fleet, self.runs[i], self.runs[i].rows
        alive, diverged_at = bool(fleet.alive[i]), int(fleet.diverged_at[i])
        state, reason, advice = "completed" if alive else "pruned", None, None
        evaluations = int(rows[-1]["evaluations"] or 0) if state == "pruned" else fleet.evaluations
        if alive and not self.measured[f"{self._deciding_part}_loss"][i] <= float(fleet.loss_limit[i]):
            diverged_at = fleet.evaluations - 1  # the last update diverged; no gradient was computed after it
        if diverged_at >= 0:
            state, evaluations = "diverged", diverged_at + 1
            reason = f"diverged at gradient evaluation {evaluations}, last loss {float(fleet.last_loss[i]):g}; "
            advice = divergence_hint(fleet, i, diverged_at, self.best.x[i])
            reason += advice
        guessing = state == "completed" and is_guessing(
            self.measured[f"{self._deciding_part}_error"][i],
            self._guess,
            getattr(self.prepared.data, self._deciding_part).n,
            self.prepared.data.task == "classification",
        )
        if guessing:
            advice = learning_hint(fleet, i, self._start[i], self._settings)
        data, log_odds = self.prepared.data, self.prepared.problem.loss.name == "logistic"
        return Result(
            config=run.config,
            task=self.prepared.data.task,
            state="failed" if run.failure else state,
            evaluations=evaluations,
            seconds=self.position.seconds,
            metrics={name: [row[name] for row in rows] for name in rows[0]},
            network=network_at(self.prepared.problem.model, fleet.x[i], self.prepared.buffers_at),
            around={"units": data.units, "input_shape": data.input_shape, "log_odds": log_odds},
            n_parameters=self.prepared.problem.d,
            **{name: values[i] for name, values in self.measured.items()},
            best_validation_error=float(self.best.error[i]) if "validation" in self.evaluators else math.nan,
            best_at=int(self.best.at[i]),
            last_loss=float(fleet.last_loss[i]),
            folder=None if run.folder is None else run.folder.path,
            engine=self.choices["engine"],
            reason=run.failure or reason,
            guess_error=self._guess,
            no_better_than_guessing=guessing,
            regime=self._regimes[i],
            advice=advice,
        )

    def record(self, results: list[Result], fleet_sizes: Sequence[int]) -> list[Result]:
        """Record how the runs ended, and return the results; a run that could not be recorded has failed.

        fleet_sizes: the number of runs that the fleet of each run had at its end.

        All files of all runs are on the disk before the first status.json says that a run has ended, because a finished
        run is not opened again.
        """
        ends = []
        for i, (run, result) in enumerate(zip(self.runs, results, strict=True)):
            if run.folder is None or run.final or run.failure:
                continue
            fields = {name: getattr(result, name) for name in _RECORDED} | self.choices
            fields |= {"data": self.prepared.data_digest, "n_test": self.prepared.data.test.n, "code": code_version()}
            fields |= {"fleet_size": fleet_sizes[i], "parent": run.parent}
            fields["errors_are"] = "RMSE" if result.task == "regression" else "shares of wrong classes"
            lines = [(logging.INFO, f"{result.state} after {result.evaluations} gradient evaluations")]
            if result.regime is not None:
                fields["regime"] = result.regime.recorded()
            if result.reason is not None:
                fields["reason"] = result.reason
                lines.insert(0, (logging.ERROR, result.reason))
            if result.no_better_than_guessing:
                lines.insert(0, (logging.WARNING, f"no better than guessing; {result.advice}"))
            with run.recording(self.alone):
                log_once(run.folder.log, run.folder.path / LOG, lines)
                run.folder.stage_end(result.state, fields)
                ends.append((run, run.folder, result.state, fields))
        make_lasting_together(self.runs)
        for run, folder, state, fields in ends:
            if run.failure is None:
                with run.recording(self.alone):
                    folder.commit_end(state)
                    run.end_sinks(state, fields)
        return [
            dataclasses.replace(result, state="failed", reason=run.failure) if run.failure else result
            for run, result in zip(self.runs, results, strict=True)
        ]
