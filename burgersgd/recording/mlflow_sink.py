# pyright: reportMissingImports=false
# (MLflow is an extra)
"""The sink of MLflow: trainer.sinks=[tensorboard,mlflow], with the extra `mlflow`.

Runs are stored at MLFLOW_TRACKING_URI or, where that is not set, in mlflow.db (sqlite) next to the run folder;
`mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burgersgd.recording.tensorboard import flat_hparams

EXPERIMENT = "burgersgd"
FOLDER = "burgersgd.folder"
"""Tag with the folder of a run, by which a resumed run finds the metrics that were logged before."""
MOST = 1000
"""Largest number of metrics in one request."""
MOST_PARAMS = 100


class MlflowSink:
    """Sends one run to MLflow: its configuration as parameters, its rows as metrics and its end as the status."""

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Create the run; delete an earlier one of the same folder, since all rows of a resumed run are sent again."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.parent / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        existing = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = self._client.create_experiment(EXPERIMENT) if existing is None else existing.experiment_id
        for earlier in self._client.search_runs([experiment], f"tags.`{FOLDER}` = '{folder}'"):
            self._client.delete_run(earlier.info.run_id)
        self._run = self._client.create_run(experiment, run_name=folder.name, tags={FOLDER: str(folder)}).info.run_id
        params = [Param(name, str(value)) for name, value in flat_hparams(config).items()]
        for i in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[i : i + MOST_PARAMS])

    def rows(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Log every number of the rows, with the number of gradient evaluations as the step."""
        self._log([(name, value, int(row["evaluations"] or 0)) for row in rows for name, value in row.items()])

    def end(self, state: str, result: Mapping[str, Any]) -> None:
        """Log the final numbers and end the run; MLflow's status of an interrupted run is KILLED."""
        last = int(result.get("evaluations") or 0)
        numbers = ("test_error", "test_loss", "best_test_error", "best_validation_error")
        self._log([(name, result.get(name), last) for name in numbers])
        how = {"completed": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._run, how.get(state, "FAILED"))

    def _log(self, values: Sequence[tuple[str, Any, int]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        numbers = [(n, float(v), step) for n, v, step in values if isinstance(v, int | float) and n != "evaluations"]
        metrics = [Metric(name, value, now, step) for name, value, step in numbers if not math.isnan(value)]
        for i in range(0, len(metrics), MOST):
            self._client.log_batch(self._run, metrics=metrics[i : i + MOST])
