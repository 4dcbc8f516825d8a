"""Adapts a user's nn.Module to the model interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from burgersgd.isolation import seeded
from burgersgd.models.own_module import check, independent_copy


class Wrapped:
    """A copy of an nn.Module whose trainable parameters are one vector, called by torch.func.functional_call.

    Parameters with requires_grad=False do not change; a parameter that occurs twice (tied weights) counts once.
    Submodules in evaluation mode stay in it if the module itself is in training mode, as after model.train() and
    model.part.eval(). Raises ValueError, one line, for a module that cannot be trained as its author intended.
    """

    def __init__(self, module: nn.Module, source: nn.Module | Callable[[], nn.Module] | None = None) -> None:
        """Wrap a copy of a module; source is the module itself (or None) or a function that makes one for each run."""
        check(module)
        self.source = module if source is None else source
        self._original = independent_copy(module)
        self._called = independent_copy(module)  # calls may change its attributes
        self._always_evaluating = [m for m in self._called.modules() if self._called.training and not m.training]
        self._mode: bool | None = None
        trained: dict[int, int] = {}
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        for name, p in self._called.named_parameters():
            if p.requires_grad and p.numel():
                trained[id(p)] = len(trained)
                self.names.append(name)
                self.shapes.append(tuple(p.shape))
        self._parameter_numbers: list[tuple[str, int]] = []
        """Pairs (name, number of the trained parameter); a tied parameter has several names."""
        fixed: dict[str, Tensor] = {}
        for prefix, part in self._called.named_modules():
            for name, p in part._parameters.items():
                place = f"{prefix}.{name}" if prefix else name
                if p is not None and id(p) in trained:
                    self._parameter_numbers.append((place, trained[id(p)]))
                elif p is not None:
                    fixed[place] = p.detach()
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    fixed[f"{prefix}.{name}" if prefix else name] = buffer.detach()
        self._fixed = {torch.get_default_dtype(): fixed}
        self.fixed = fixed
        """Frozen parameters and buffers by name."""
        self.random = False
        """Whether a call draws from torch's global generator, which is then seeded for each run separately."""
        self.changing: tuple[str, ...] = ()
        """Names of the buffers that training changes (running statistics), state of a run that is passed to apply."""
        self.batched = True
        """Whether torch.func.vmap can take several runs at once."""

    @property
    def n_uniform(self) -> int:
        """Uniform numbers needed per example: 2 of 24 bits each, which seed torch's generator for an evaluation."""
        return 2 if self.random else 0

    def start(self) -> Tensor:
        """Return the module's own parameters as one vector ``[d]``."""
        parameters = dict(self._original.named_parameters())
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def original_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters by name of the user's module, which is never trained itself."""
        return list(self.source.named_parameters()) if isinstance(self.source, nn.Module) else []

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move frozen parameters and buffers to a device and convert their floating-point numbers to dtype."""
        self.fixed = {name: _as(value.to(device), dtype) for name, value in self.fixed.items()}
        self._fixed = {dtype: self.fixed}

    def apply(
        self,
        params: Sequence[Tensor],
        inputs: Tensor,
        train: bool,
        uniform: Tensor | None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the module's outputs with the given parameters, in training or evaluation mode.

        buffers: those with names in `changing`, which a call in training mode changes; None: copies of the initial
        ones. A module that draws random numbers is seeded by uniform ``[batch, 2]``, in evaluation mode by a constant.
        """
        self._set_mode(train)
        fixed = self._fixed.get(inputs.dtype)
        if fixed is None:  # the network computes in bfloat16
            fixed = self._fixed[inputs.dtype] = {n: _as(value, inputs.dtype) for n, value in self.fixed.items()}
        if buffers is None:
            buffers = {name: fixed[name].clone() for name in self.changing}
        tensors = {place: params[number] for place, number in self._parameter_numbers} | fixed | dict(buffers)
        inputs = inputs.clone()  # the module may write into its inputs
        if not self.random or (train and uniform is None):
            return functional_call(self._called, tensors, (inputs,), tie_weights=False)
        with seeded(0 if uniform is None or not train else _seed_of(uniform)):
            return functional_call(self._called, tensors, (inputs,), tie_weights=False)

    @torch.no_grad()
    def statistics_at(
        self, params: Sequence[Tensor], inputs: Tensor, batch_size: int, n_batches: int
    ) -> dict[str, Tensor]:
        """Return the buffers of `changing`, estimated at the given parameters from the first n_batches of inputs.

        Running statistics of batch normalisation become means over these batches; other buffers start from their
        initial values. inputs are those of the training part, so that statistics never depend on evaluated examples.
        """
        buffers = {name: self.fixed[name].clone() for name in self.changing}
        self._set_mode(True)
        averaged = [part for part in self._called.modules() if isinstance(part, _BatchNorm) and part.training]
        momenta = [part.momentum for part in averaged]
        for prefix, part in self._called.named_modules():
            if part in averaged and part.running_mean is not None:
                for name in ("running_mean", "running_var", "num_batches_tracked"):
                    buffers[f"{prefix}.{name}" if prefix else name].fill_(float(name == "running_var"))
        batches = [batch for batch in inputs[: batch_size * n_batches].split(batch_size) if len(batch) == batch_size]
        try:
            for part in averaged:
                part.momentum = None  # a mean over the batches instead of an exponential average
            with seeded(0):
                for batch in batches:
                    self.apply(params, batch, True, None, buffers)
        finally:
            for part, momentum in zip(averaged, momenta, strict=True):
                part.momentum = momentum
        return buffers

    def _set_mode(self, train: bool) -> None:
        if self._mode != train:
            self._called.train(train)
            for part in self._always_evaluating:
                part.training = False
            self._mode = train

    def module(self) -> nn.Module:
        """Return a copy of the module."""
        return independent_copy(self._original)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _seed_of(uniform: Tensor) -> int:
    """Return a seed of 48 bits from the first two numbers, which are multiples of 2^-24."""
    high, low = (int(math.ldexp(u, 24)) for u in uniform[0].tolist())
    return high << 24 | low
