"""Composes and checks the jobs of a sweep before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from burgersgd.build.prepared import prepare
from burgersgd.build.rates import Facts, resolved
from burgersgd.config import TrainConfig
from burgersgd.identity import config_hash
from burgersgd.sweeps.chunks import group_name
from burgersgd.sweeps.compose import Composer
from burgersgd.sweeps.report import setting_of


class Plan(NamedTuple):
    """A job, composed and checked."""

    config: TrainConfig
    budget: int
    percent: bool
    """Whether its errors are fractions of wrong classes."""
    digits: str
    """Hash of its configuration, which identifies its folder."""
    data: str
    """Digest of its data set."""


class Plans:
    """Composes and checks jobs, each of them once; jobs that may share a fleet are prepared only once."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._checked: dict[str, tuple[Facts, str]] = {}
        self._settings: dict[tuple[str, ...], str] = {}

    def of(self, words: Sequence[str]) -> Plan:
        """Return the plan of a job. Raises ConfigError or DataError."""
        key = tuple(words)
        if key not in self._plans:
            config = self._composer.config(words)
            if config.run_name is not None:
                raise config.error(
                    "run_name",
                    "must be left out: the runs of a sweep are named by their settings; use sweep.name",
                )
            group = group_name(config)
            if group not in self._checked:
                prepared = prepare([config])
                self._checked[group] = prepared.facts, prepared.data_digest
            facts, data = self._checked[group]
            config = resolved(config, facts)
            digits = config_hash(config, facts.budget)
            self._plans[key] = Plan(config, facts.budget, facts.task == "classification", digits, data)
        return self._plans[key]

    def setting(self, words: tuple[str, ...]) -> str:
        """Return the hash of a job's setting, equal for jobs that differ only in the seed. Raises as `of` does."""
        if words not in self._settings:
            plan = self.of(words)
            self._settings[words] = setting_of(plan.config, plan.budget)
        return self._settings[words]

    def known(self, words: tuple[str, ...]) -> Plan | None:
        """Return the plan of a job that was composed before; None for other jobs."""
        return self._plans.get(words)
