"""Augments training images by random crops, flips and shifts, which keep their class, in batches on their device.

An image has a variant for every combination of a shift and a flip. The variants of all n images are numbered

    number = example + n variant,    variant = flip + 2 (column + (2 reach_x + 1) row)

(without the factor 2 where images are not flipped). Batches draws these numbers from a separate stream of each run, and
this module turns them into images. Pixel (i, j) of a variant is pixel (i + row - reach_y, j + column - reach_x) of the
image, or black outside of the image; a flip then mirrors the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from burgersgd.datasets.dataset import DataError, Dataset

REACH = 1 / 8
"""Largest shift as a fraction of height and width: 4 of 32 pixels, as is usual for CIFAR-10."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """The variants of n training images."""

    n: int
    flips: bool
    """Whether half of the variants are mirrored."""
    reach: tuple[int, int]
    """Largest numbers of pixels by which an image is shifted vertically and horizontally."""
    black: Float[Tensor, "channels #height #width"]
    """Values of a black pixel, which fills the border of a shifted image."""

    @property
    def variants(self) -> int:
        """Number of variants of an image."""
        rows, columns = (2 * reach + 1 for reach in self.reach)
        return rows * columns * (2 if self.flips else 1)

    def __call__(
        self, images: Float[Tensor, "n channels height width"], numbers: Int64[Tensor, "..."]
    ) -> Float[Tensor, "... channels height width"]:
        """Return the variants with the given numbers."""
        _, channels, height, width = images.shape
        (reach_y, reach_x), device = self.reach, images.device
        number = numbers[..., None, None, None]
        example, variant = number % self.n, number // self.n
        j = torch.arange(width, device=device)
        if self.flips:
            j, variant = torch.where(variant % 2 == 1, width - 1 - j, j), variant // 2
        row = torch.arange(height, device=device)[:, None] + variant // (2 * reach_x + 1) - reach_y
        column = j + variant % (2 * reach_x + 1) - reach_x
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        channel = torch.arange(channels, device=device)[:, None, None]
        moved = images[example, channel, row.clamp(0, height - 1), column.clamp(0, width - 1)]
        return torch.where(inside, moved, self.black)


def augmentation_of(kind: str, data: Dataset) -> Augmentation | None:
    """Return the augmentation of dataset.augment, on the device of the data; None for none.

    crop_flip: images are shifted by up to an eighth of height and width, and mirrored with probability 1/2. shift: they
    are only shifted. Raises DataError for examples that are not images ``[channels, height, width]``.
    """
    if kind == "none":
        return None
    if len(data.input_shape) != 3:
        shape = list(data.input_shape)
        allowed = f"must be none, because the examples have shape {shape} and are not images [channels, height, width]"
        raise DataError(f"dataset.augment={kind}: {allowed}")
    inputs, units = data.train.inputs, data.units
    mean, deviation = (t.to(device=inputs.device, dtype=inputs.dtype) for t in (units.mean, units.deviation))
    black = (-mean / deviation).expand(1, *data.input_shape)[0]
    height, width = (max(1, round(REACH * side)) for side in data.input_shape[1:])
    return Augmentation(data.n_train, kind == "crop_flip", (height, width), black)
