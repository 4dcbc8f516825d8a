"""The settings that gradient descent with momentum and weight decay has, whatever its gradient is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from burgersgd.schema import OptimizerConfig, opt, weight_decay_on


@dataclass
class MomentumConfig(OptimizerConfig):
    """Base of the optimizers whose x moves by a gradient with momentum and weight decay."""

    base_lr: ClassVar[float] = 0.3
    momentum: float = opt(0.0, "fraction of the last step that is added to the next one", at_least=0, below=1)
    nesterov: bool = opt(False, "use Nesterov instead of heavy-ball momentum; needs momentum > 0")
    weight_decay: float = opt(
        0.0, "weight decay: adds weight_decay |x|^2 / 2 to the loss whose gradient moves x", at_least=0
    )
    weight_decay_on: str = weight_decay_on()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise self.error("nesterov", "needs optimizer.momentum > 0")

    def default_lr(self, share: float) -> float:
        """Return the learning rate where none is set: momentum makes 1 / (1 - momentum) steps of every gradient."""
        return self.base_lr * share * (1 - self.momentum)
