"""The result of training a run: its metrics, errors and network."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from burgersgd.config import TrainConfig
from burgersgd.predictor import Predictor
from burgersgd.training.regime import Regime


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run. Errors, at x, are fractions of wrong classes, or in a regression the RMSE per output."""

    config: TrainConfig
    task: Literal["classification", "regression"]
    state: Literal["completed", "diverged", "pruned", "failed"]
    """How the run ended; failed: its folder could not be written (see reason)."""
    evaluations: int
    """Gradient evaluations spent; for a diverged run, the evaluation in which it became non-finite or exploded."""
    seconds: float
    metrics: dict[str, list[float | None]]
    """Columns of equal length, as in metrics.csv: `pandas.DataFrame(result.metrics)` is a table."""
    network: Callable[[], nn.Module]
    """Makes the network, see model; it is made on demand because most networks of a sweep are never used."""
    around: Mapping[str, Any]
    """Arguments of the predictor besides the network: units and shape of the raw inputs, meaning of the outputs."""
    n_parameters: int
    test_error: float
    test_loss: float
    validation_error: float
    validation_loss: float
    best_validation_error: float
    best_test_error: float
    """Test error at the best x by validation (lowest error, then lowest loss, then the latest), found at best_at.

    It is NaN, like all numbers of validation, with dataset.validation_fraction=0.
    """
    best_at: int
    last_loss: float
    """Mini-batch loss of the last finite gradient evaluation."""
    folder: Path | None
    engine: str
    """The engine that computed the steps: native, native_update, compiled or eager (docs/architecture.md)."""
    reason: str | None = None
    """Why the run diverged or failed; None if it did not."""
    guess_error: float = math.nan
    """Error of the best constant answer, the most frequent class or the mean of the targets.

    It is measured on the validation part, or on the test part if there is no validation part.
    """
    no_better_than_guessing: bool = False
    """Whether a completed run's error on that part is not clearly below guess_error (training/evaluation.py)."""
    regime: Regime | None = None
    """For local_entropy: L lr / gamma, epsilon, and nu over the noise of the mini-batches (training/regime.py)."""
    advice: str | None = None
    """What to try next, for a run that diverged or predicts no better than guessing."""

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network: an ordinary module at the last x, on the CPU, in evaluation mode.

        It takes inputs that are preprocessed as in training, by default standardised.
        """
        return self.network()

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The network with the preprocessing of the data: from raw inputs to class scores, or targets in their unit."""
        return Predictor(self.model, **self.around)

    def __repr__(self) -> str:
        """Return five lines: how the run ended, its numbers, and where they are."""
        first, *others = (f"{label}: {text}" for label, text in self._shown().items())
        return "\n  ".join([f"Result({first}", *others]) + ")"

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        rows = [f"<th>{html.escape(k)}</th><td>{html.escape(v)}</td>" for k, v in self._shown().items()]
        warned = ' style="color: #b00020"' if self.state in ("diverged", "failed") else ""
        return f"<table><tr{warned}>{'</tr><tr>'.join(rows)}</tr></table>"

    def _shown(self) -> dict[str, str]:
        """Return the most important facts, label -> text."""
        name = "error" if self.task == "classification" else "RMSE"

        def shown(error: float) -> str:
            return f"{100 * error:.2f} %" if self.task == "classification" else f"{error:.4g}"

        optimizer = f"{self.config.optimizer.name}, lr {self.config.optimizer.lr:g}, seed {self.config.seed}"
        head = {self.state if self.state != "diverged" else "DIVERGED": f"{optimizer}, {self.config.dataset.name}"}
        spent = f"{self.evaluations:,} in {self.seconds:.1f} s ({self.engine})"
        tail = {"gradient evaluations": spent, "folder": str(self.folder)}
        if self.state in ("diverged", "failed"):
            return head | {"reason": self.reason or "", "last finite loss": f"{self.last_loss:.4g}"} | tail
        warned = {"no better than guessing": self.advice or ""} if self.no_better_than_guessing else {}
        if math.isnan(self.validation_error):
            last = f"{shown(self.test_error)} (no validation part), loss {self.test_loss:.4g}"
            return head | {f"test {name}": last} | warned | tail
        last = f"{shown(self.test_error)} (validation {shown(self.validation_error)}), loss {self.test_loss:.4g}"
        best = f"test {name} {shown(self.best_test_error)} after {self.best_at:,} gradient evaluations"
        return head | {f"test {name}": last, "best by validation": best} | warned | tail

    @property
    def objective(self) -> float:
        """The number to minimise in a search: the validation error, +inf for a diverged run."""
        return self.validation_error if self.state in ("completed", "pruned") else math.inf
