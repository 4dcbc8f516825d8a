"""Models: functions of a list of parameter tensors of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Model(Protocol):
    """The interface of a model; its parameters are views of one vector x in R^d."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameter tensors, in the order of the vector."""
        ...

    @property
    def n_uniform(self) -> int:
        """Number of uniform random numbers needed per training example (dropout), 0 for none."""
        ...

    @property
    def batched(self) -> bool:
        """Whether torch.func.vmap can take several runs at once; otherwise they are computed one by one."""
        ...

    def apply(self, params: Sequence[Tensor], inputs: Tensor, train: bool, uniform: Tensor | None) -> Tensor:
        """Return the outputs ``[batch, outputs]``; uniform ``[batch, n_uniform]`` for dropout, else None."""
        ...

    def module(self) -> nn.Module:
        """Return an ordinary nn.Module of the same shape, parameters in the same order."""
        ...
