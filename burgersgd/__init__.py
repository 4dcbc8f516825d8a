"""burgersgd: gradient descent on the local entropy of the loss, the viscous Burgers flow of its gradient.

>>> import burgersgd
>>> config = burgersgd.TrainConfig(trainer=burgersgd.TrainerConfig(budget=40))
>>> result = burgersgd.train(config, record=False, progress=False)
>>> result.evaluations
40
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burgersgd import config
from burgersgd.config import ConfigError, TrainConfig, TrainerConfig

if TYPE_CHECKING:
    from burgersgd.analysis.runs import load
    from burgersgd.api import Result, resume, train, train_all, train_fleet
    from burgersgd.revisit import load_predictor

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "Result",
    "TrainConfig",
    "TrainerConfig",
    "config",
    "load",
    "load_predictor",
    "resume",
    "train",
    "train_all",
    "train_fleet",
]


if not TYPE_CHECKING:  # otherwise type checkers would accept every misspelt name

    def __getattr__(name: str) -> Any:
        if name in ("Result", "resume", "train", "train_all", "train_fleet"):  # torch takes a second to import
            from burgersgd import api

            return getattr(api, name)
        if name == "load":
            from burgersgd.analysis import runs

            return runs.load
        if name == "load_predictor":
            from burgersgd.revisit import load_predictor

            return load_predictor
        raise AttributeError(f"module 'burgersgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
