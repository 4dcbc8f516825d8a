"""Fully connected networks (2.2)-(2.4): z_l = sigma(W_l z_{l-1} + b_l), the last layer affine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from burgersgd.schema import ModelConfig, named, opt

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], nn.Module]]] = {
    "relu": (F.relu, nn.ReLU),
    "tanh": (torch.tanh, nn.Tanh),
    "sigmoid": (torch.sigmoid, nn.Sigmoid),
    "gelu": (F.gelu, nn.GELU),
    "silu": (F.silu, nn.SiLU),
    "elu": (F.elu, nn.ELU),
    "softplus": (F.softplus, nn.Softplus),
    "identity": (lambda z: z, nn.Identity),
}


@dataclass
class InitializedModelConfig(ModelConfig):
    """Base of the models whose weights are drawn as named here, and that drop hidden units."""

    dropout: float = opt(
        0.0, "probability with which a hidden unit is set to 0 in training; 0: no dropout", at_least=0, below=1
    )
    initialization: str = opt(
        "he",
        "standard deviation of the initial weights of a layer with n inputs and m outputs; he: sqrt(2 / n); glorot: "
        "sqrt(2 / (n + m)); lecun: sqrt(1 / n); pytorch: sqrt(1 / (3 n)), also for biases, which are otherwise 0",
        choices=("he", "glorot", "lecun", "pytorch"),
    )
    init_distribution: str = opt("normal", "distribution of the initial weights", choices=("normal", "uniform"))
    init_scale: float = opt(1.0, "factor on the initial weights", above=0, at_most=1e6)


@dataclass
class MlpConfig(InitializedModelConfig):
    """A fully connected network (2.2)-(2.4)."""

    name: str = named("mlp")
    depth: int = opt(2, "number of hidden layers", at_least=0, at_most=1000, unused_with="widths")
    width: int = opt(64, "number of units in each hidden layer", at_least=1, unused_with="widths")
    widths: list[int] | None = opt(
        None, "number of units layer by layer, such as [128,64]; replaces depth and width", at_least=1
    )
    activation: str = opt("relu", "activation function of the hidden layers", choices=tuple(ACTIVATIONS))

    def lr_share(self, n_inputs: int) -> float:
        """Return the factor on an optimizer's default learning rate: 1 up to the size for which it was chosen."""
        depth = self.depth if self.widths is None else len(self.widths)
        return 1.0 if depth <= 2 and n_inputs <= 100 else 1 / 3

    def network(self, input_shape: tuple[int, ...], n_outputs: int) -> Mlp:
        """Return the network; inputs are flattened."""
        hidden = self.widths if self.widths is not None else [self.width] * self.depth
        drawn = (self.dropout, self.initialization, self.init_scale, self.init_distribution)
        return Mlp((math.prod(input_shape), *hidden, n_outputs), self.activation, *drawn)


def weight_std(initialization: str, fan_in: int, fan_out: int) -> float:
    """Return the standard deviation of a weight by the rule of that name.

    The rules are those of He et al. 2015, Glorot & Bengio 2010 and LeCun et al. 1998, and the default of torch.

    Raises ValueError for an unknown name.
    """
    variance = {
        "he": 2 / fan_in,
        "glorot": 2 / (fan_in + fan_out),
        "lecun": 1 / fan_in,
        "pytorch": 1 / (3 * fan_in),
    }
    if initialization not in variance:
        raise ValueError(f"initialization={initialization}: one of {', '.join(variance)}")
    return math.sqrt(variance[initialization])


def initial_std(shapes: Sequence[tuple[int, ...]], initialization: str, init_scale: float) -> Tensor:
    """Return the standard deviation of every initial parameter, ``[d]``: that of the rule for weights, 0 for biases.

    shapes alternates weight ``[out, in, ...]`` and bias ``[out]``; "pytorch" draws biases, too.
    """
    parts = []
    fan_in = 1
    for shape in shapes:
        if len(shape) > 1:
            receptive = math.prod(shape[2:])
            fan_in = shape[1] * receptive
            std = init_scale * weight_std(initialization, fan_in, shape[0] * receptive)
        else:
            std = init_scale * weight_std("pytorch", fan_in, 1) if initialization == "pytorch" else 0.0
        parts.append(torch.full((math.prod(shape),), std))
    return torch.cat(parts)


def dropout(z: Tensor, uniform: Tensor, p: float) -> Tensor:
    """Zero the units whose uniform number is below p and scale the rest (inverted dropout, Srivastava et al. 2014)."""
    return torch.where(uniform < p, 0.0, z / (1 - p))


@dataclass(frozen=True)
class Mlp:
    """A fully connected network with widths = (inputs, hidden ..., outputs).

    The parameters of one run are W_1, b_1, W_2, ... in one vector.

    Implements Eq. (2.1).
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    dropout: float = 0.0
    initialization: str = "he"
    init_scale: float = 1.0
    init_distribution: str = "normal"

    image: ClassVar[None] = None
    """Shape of the images for convolutional layers; None because there are none (see models/conv.py)."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of W_1, b_1, W_2, b_2, ..."""
        return [s for n_in, n_out in zip(self.widths, self.widths[1:], strict=False) for s in ((n_out, n_in), (n_out,))]

    @property
    def batched(self) -> bool:
        """True: vmap supports all operations of the network."""
        return True

    @property
    def n_uniform(self) -> int:
        """Number of uniform numbers that dropout needs per example."""
        return sum(self.widths[1:-1]) if self.dropout > 0 else 0

    def init_std(self) -> Tensor:
        """Return the standard deviation of every initial parameter, ``[d]``."""
        return initial_std(self.shapes, self.initialization, self.init_scale)

    def apply(self, params: Sequence[Tensor], inputs: Tensor, train: bool, uniform: Tensor | None) -> Tensor:
        """Return the outputs ``[batch, outputs]`` of inputs ``[batch, ...]``; uniform ``[batch, n_uniform]``.

        Implements Eq. (2.2), (2.3), (2.4).
        """
        sigma = ACTIVATIONS[self.activation][0]
        z = inputs.flatten(1)
        start = 0
        for i in range(0, len(params) - 2, 2):
            z = sigma(F.linear(z, params[i], params[i + 1]))  # (2.2)
            if uniform is not None:
                z = dropout(z, uniform[:, start : start + z.shape[-1]], self.dropout)
                start += z.shape[-1]
        return F.linear(z, params[-2], params[-1])  # (2.4)

    def module(self) -> nn.Module:
        """Return the same network as an ordinary nn.Module, parameters in the same order."""
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[self.activation][1]()]
            if self.dropout > 0:
                layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers[: -1 - (self.dropout > 0)])
