"""The user's own nn.Module behind the model interface."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Wrapped:
    """An nn.Module with its parameters as one vector, called by torch.func.functional_call.

    Raises ValueError for a module without parameters, or with buffers that training changes (batch normalisation),
    which are not run state yet.
    """

    n_uniform = 0

    def __init__(self, module: nn.Module) -> None:
        self.names = [name for name, _ in module.named_parameters()]
        self.shapes = [tuple(p.shape) for p in module.parameters()]
        if not self.names:
            raise ValueError("model: the module has no parameters")
        changing = [type(m).__name__ for m in module.modules() if getattr(m, "track_running_stats", False)]
        if changing:
            raise ValueError(
                f"model: {changing[0]} keeps running statistics; use track_running_stats=False or GroupNorm"
            )
        self._module = module

    def start(self) -> Tensor:
        """Return the module's own parameters as one vector ``[d]``."""
        return torch.cat([p.detach().reshape(-1) for p in self._module.parameters()])

    def apply(self, params: Sequence[Tensor], inputs: Tensor, train: bool, uniform: Tensor | None) -> Tensor:
        """Return the module's outputs with the given parameters, in training or evaluation mode."""
        self._module.train(train)
        return functional_call(self._module, dict(zip(self.names, params, strict=True)), (inputs,))

    def module(self) -> nn.Module:
        """Return a copy of the module."""
        return copy.deepcopy(self._module)
