"""Resolves the settings that depend on data and model: loss=auto, the default learning rate, lr=auto.

If no rate is set, that of the rule (chosen on digits, docs/defaults.md) is multiplied by a factor, called a share: 1
for classifiers whose network is no larger than the one for which it was chosen, less for others. The shares were found
by `python scripts/search_rates.py`. optimizer.lr=auto measures the curvature instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from burgersgd.config import TrainConfig
from burgersgd.copies import changed
from burgersgd.training.stability import SAFE_SHARE, safe_lr

SQUARED_ERROR_SHARE = 1 / 30
"""Factor on the default rate with loss=squared_error, whose curvature grows with the network's initial outputs."""


OWN_MODEL_SHARE = 1 / 10
"""Factor on the default rate for a user's module; LeNet needs the same factor."""


@dataclass
class Facts:
    """The properties of data and model that determine these settings, the same for all runs of a fleet."""

    task: str
    n_inputs: int
    own_model: bool
    budget: int
    curvature: Callable[[], float]
    """Function that measures the largest |eigenvalue| of the Hessian at the start of seed 0."""


def with_loss(config: TrainConfig, task: str) -> TrainConfig:
    """Return the configuration with loss=auto resolved, and without settings that do not apply to the task."""
    dataset, loss = config.dataset.recorded(), config.loss
    if loss.name == "auto":
        loss = changed(loss, name="squared_error" if task == "regression" else "cross_entropy")
    if task == "classification" and getattr(dataset, "standardize_targets", False):
        dataset = changed(dataset, standardize_targets=False)  # pyright: ignore[reportCallIssue]
    if (dataset, loss) == (config.dataset, config.loss):  # checking a new configuration takes 1 ms
        return config
    return changed(config, dataset=dataset, loss=loss)


def resolved(config: TrainConfig, facts: Facts) -> TrainConfig:
    """Return the configuration with all automatic settings resolved. Raises ConfigError where lr=auto is impossible."""
    config = with_loss(config, facts.task)
    optimizer = config.optimizer
    if optimizer.lr == "default":
        share = min(
            SQUARED_ERROR_SHARE if config.loss.name == "squared_error" else 1.0,
            OWN_MODEL_SHARE if facts.own_model else config.model.lr_share(facts.n_inputs),
        )
        lr = float(f"{optimizer.default_lr(share):.2g}")
    elif optimizer.lr == "auto":
        lip = facts.curvature()
        if not (math.isfinite(lip) and lip > 0):
            raise optimizer.error(
                "lr", f"the curvature at the start is {lip:g}, must be positive and finite; set a number instead"
            )
        hyper = {**optimizer.hyper(), "lr": math.nan}
        found = safe_lr(optimizer.rule(), hyper, facts.budget, lip, SAFE_SHARE)
        if found is None:
            raise optimizer.error(
                "lr", f"no bound on the learning rate of {optimizer.name} is known; set a number instead"
            )
        lr = float(f"{found:.2g}")  # two digits: the curvature is rounded differently on other machines
    else:
        return config
    return changed(config, optimizer=changed(optimizer, lr=lr))
