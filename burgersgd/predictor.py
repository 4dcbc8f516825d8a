"""A network at x with the preprocessing of its data: it maps raw inputs to class scores or raw targets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from burgersgd.config import GROUPS, ConfigError
from burgersgd.datasets import Dataset, Units
from burgersgd.datasets.dataset import one_line
from burgersgd.identity import OWN
from burgersgd.losses import Loss
from burgersgd.models import Model
from burgersgd.models.own_module import check, independent_copy
from burgersgd.models.wrapped import Wrapped
from burgersgd.schema import ModelConfig


class Predictor(nn.Module):
    """A network that takes raw inputs, which it divides, shifts and scales as the training data were, in float32.

    Called with ``[n, ...]`` (a tensor or an array), it returns class scores ``[n, classes]``, the largest of which is
    that of the predicted class, or regression targets ``[n, outputs]`` in their own unit.
    """

    mean: Tensor
    deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor

    def __init__(self, network: nn.Module, units: Units, input_shape: tuple[int, ...], log_odds: bool) -> None:
        """Wrap a network of inputs ``[n, *input_shape]``; log_odds: whether its only output is the score of class 1."""
        super().__init__()
        self.network, self.divisor, self.input_shape, self.log_odds = network, units.divisor, input_shape, log_odds
        for name in ("mean", "deviation", "target_mean", "target_deviation"):
            self.register_buffer(name, getattr(units, name).detach().cpu().clone())
        self.eval()

    def forward(self, inputs: Any) -> Tensor:
        """Return class scores or targets of raw inputs; an example may have any shape with the right number of values.

        It is reshaped to input_shape.
        """
        raw = torch.as_tensor(inputs, device=self.mean.device).to(self.mean.dtype)
        raw = raw.reshape(len(raw), *self.input_shape) / self.divisor
        scaled = (raw - self.mean) / self.deviation
        outputs = self.network(scaled.to(next(self.network.parameters()).dtype))
        if self.log_odds:
            return torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs * self.target_deviation.to(outputs) + self.target_mean.to(outputs)


def trained_parameters(model: Model, module: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """Return the parameters that x holds, in its order, of model.module() or of the given module."""
    parameters = dict((model.module() if module is None else module).named_parameters())
    return {name: parameters[name] for name in model.names} if isinstance(model, Wrapped) else parameters


def module_at(model: Model, x: Tensor, buffers: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return an ordinary module at x, on the CPU, in evaluation mode; its tensors share no memory with any other.

    buffers: the buffers that training changes, at x, if the model has any.
    """
    module = model.module().to("cpu", x.dtype)
    parameters = trained_parameters(model, module).values()
    with torch.no_grad():
        for parameter, part in zip(parameters, x.detach().cpu().split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view(parameter.shape))
        for name, value in (buffers or {}).items():
            module.get_buffer(name).copy_(value)
    return module.eval()


def network_at(
    model: Model, x: Tensor, buffers_at: Callable[[Tensor], dict[str, Tensor]] | None
) -> Callable[[], nn.Module]:
    """Return a function that makes the module at x, see module_at; x may change afterwards.

    The user's own module is made immediately, because its buffers at x are estimated from the training data.
    """
    if not isinstance(model, Wrapped):
        return functools.partial(module_at, model, x.detach().cpu().clone())
    return functools.partial(_itself, module_at(model, x, None if buffers_at is None else buffers_at(x)))


def _itself(module: nn.Module) -> nn.Module:
    return module


def described(model: Model, own: bool, settings: ModelConfig, loss: Loss, data: Dataset) -> dict[str, Any]:
    """Return the plain values and tensors that a checkpoint needs besides x to make a Predictor, see rebuilt.

    own: whether the model is the user's own module; otherwise settings describe it.
    """
    module = model.module()
    names = {id(p): name for name, p in trained_parameters(model, module).items()}
    entries = module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    return {
        "model": {"name": OWN, "class": type(module).__name__} if own else dataclasses.asdict(settings),
        "structure": _structure(module),
        "n_outputs": loss.n_outputs(data.n_outputs),
        "tied": {name: names[id(value)] for name, value in tensors.items() if names.get(id(value), name) != name},
        "fixed": {name: value.detach().clone().cpu() for name, value in tensors.items() if id(value) not in names},
        "units": dataclasses.asdict(data.units),
        "input_shape": list(data.input_shape),
        "log_odds": loss.name == "logistic",
    }


def _structure(module: nn.Module) -> str:
    """Return a digest of a module's printed form: classes, sizes and activations, but no addresses."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def network_state(
    description: Mapping[str, Any], named: list[tuple[str, list[int]]], x: Tensor, buffers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the complete state_dict of the network at x; named holds names and shapes of the parameters in x.

    buffers: the buffers that training changed, at x.
    """
    parts = torch.split(x, [math.prod(shape) for _, shape in named])
    state = {name: part.reshape(shape).clone() for (name, shape), part in zip(named, parts, strict=True)}
    state |= {name: state[other] for name, other in description["tied"].items()}
    return state | description["fixed"] | {n: value for n, value in buffers.items() if n in description["fixed"]}


def rebuilt(description: Mapping[str, Any], state: dict[str, Tensor], own: nn.Module | None = None) -> Predictor:
    """Return the Predictor of a description (see described) and a network_state; own is the user's own module, if any.

    Raises ConfigError if own is needed but missing, or does not fit.
    """
    settings, shape = dict(description["model"]), tuple(description["input_shape"])
    if settings["name"] == OWN:
        if own is None:
            given = "burgersgd.load_predictor(..., model=...)"
            raise ConfigError(f"model={settings['class']}: is a module of your own and must be passed again: {given}")
        try:
            check(own)
            module = independent_copy(own)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    else:
        choices = GROUPS["model"]
        if settings["name"] not in choices.names():
            raise ConfigError(f"model={settings['name']}: must be one of {', '.join(choices.names())}")
        network = cast("ModelConfig", choices[settings["name"]](**settings)).network(shape, description["n_outputs"])
        module = network if isinstance(network, nn.Module) else network.module()
    dtype = next((v.dtype for name, v in state.items() if name not in description["fixed"]), None)
    module = module.to("cpu", dtype)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"model: differs from the trained module: {one_line(error)}") from error
    differing = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
    if differing:
        where = "was not trained" if differing[0] in missing else "is missing"
        raise ConfigError(f"model: differs from the trained module: {differing[0]} {where}")
    return Predictor(module, Units(**description["units"]), shape, description["log_odds"])
