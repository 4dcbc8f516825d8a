"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from burgersgd.models.mlp import InitializedModelConfig, dropout, initial_std
from burgersgd.schema import named


@dataclass
class LeNetConfig(InitializedModelConfig):
    """LeNet-5 for images."""

    name: str = named("lenet")

    def network(self, input_shape: tuple[int, ...], n_outputs: int) -> LeNet:
        """Return the network. Raises ValueError for inputs that are not images of at least 12 x 12 pixels."""
        drawn = (self.dropout, self.initialization, self.init_scale, self.init_distribution)
        return LeNet(input_shape, n_outputs, *drawn)


@dataclass(frozen=True)
class LeNet:
    """LeNet-5: conv 6 @ 5x5, pool, conv 16 @ 5x5, pool, 120, 84, outputs; images below 32 pixels are padded by 2.

    Raises ValueError for images that are not ``[channels, height, width]`` with at least 12 x 12 pixels.
    """

    input_shape: tuple[int, ...]
    n_outputs: int
    dropout: float = 0.0
    initialization: str = "he"
    init_scale: float = 1.0
    init_distribution: str = "normal"

    def __post_init__(self) -> None:
        """Check the input shape."""
        if len(self.input_shape) != 3 or min(self.input_shape[1:]) < 12:
            shape = "x".join(map(str, self.input_shape))
            raise ValueError(
                f"model=lenet: inputs are {shape}, must be images of at least 12x12 pixels; model=mlp takes any input"
            )

    @property
    def padding(self) -> int:
        """Padding of the first convolution: 2 for images below 32 pixels, so that 28 x 28 becomes 32 x 32, else 0."""
        return 2 if min(self.input_shape[1:]) < 32 else 0

    activation: ClassVar[str] = "relu"

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Channels, height, width and padding of the images."""
        channels, height, width = self.input_shape
        return channels, height, width, self.padding

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of inputs, hidden units and outputs of the fully connected layers."""
        shapes = self.shapes
        return shapes[4][1], shapes[4][0], shapes[6][0], self.n_outputs

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the weights and biases, layer by layer."""
        channels, height, width = self.input_shape
        h, w = (((side + 2 * self.padding - 4) // 2 - 4) // 2 for side in (height, width))
        weights = [(6, channels, 5, 5), (16, 6, 5, 5), (120, 16 * h * w), (84, 120), (self.n_outputs, 84)]
        return [s for weight in weights for s in (weight, (weight[0],))]

    @property
    def batched(self) -> bool:
        """True: vmap supports all operations of the network."""
        return True

    @property
    def n_uniform(self) -> int:
        """Number of uniform numbers that dropout (before the last two layers) needs per example."""
        return 120 + 84 if self.dropout > 0 else 0

    def init_std(self) -> Tensor:
        """Return the standard deviation of every initial parameter, ``[d]``."""
        return initial_std(self.shapes, self.initialization, self.init_scale)

    def apply(self, params: Sequence[Tensor], inputs: Tensor, train: bool, uniform: Tensor | None) -> Tensor:
        """Return the outputs ``[batch, outputs]`` of images ``[batch, channels, height, width]``."""
        z = F.max_pool2d(F.relu(F.conv2d(inputs, params[0], params[1], padding=self.padding)), 2)
        z = F.max_pool2d(F.relu(F.conv2d(z, params[2], params[3])), 2).flatten(1)
        for i, (start, stop) in ((4, (0, 120)), (6, (120, 204))):
            z = F.relu(F.linear(z, params[i], params[i + 1]))
            if uniform is not None:
                z = dropout(z, uniform[:, start:stop], self.dropout)
        return F.linear(z, params[8], params[9])

    def module(self) -> nn.Module:
        """Return the same network as an ordinary nn.Module, parameters in the same order."""
        shapes = self.shapes
        head: list[nn.Module] = []
        for weight in (shapes[4], shapes[6]):
            head += [nn.Linear(weight[1], weight[0]), nn.ReLU()]
            if self.dropout > 0:
                head.append(nn.Dropout(self.dropout))
        return nn.Sequential(
            nn.Conv2d(shapes[0][1], 6, 5, padding=self.padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *head,
            nn.Linear(84, self.n_outputs),
        )
