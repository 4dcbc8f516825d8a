"""Computes losses and gradients of R runs at once: the code is that of one run, and torch.func.vmap adds the others.

There are three ways to the same numbers: plain autograd on leaf views of the flat vector (the fastest eager form for a
single run), torch.func under vmap (fleets, and code that torch.compile fuses), and the C kernel of native_gradient.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.func import grad_and_value, vmap

from burgersgd.datasets.augment import Augmentation
from burgersgd.losses import Loss
from burgersgd.models import Model


def split(x: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return views of the vector x ``[d]`` with the given shapes, by torch.split: autograd of slices is slower."""
    parts = torch.split(x, [math.prod(s) for s in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True)
class Problem:
    """The function to minimise: a model, a loss and the training part, on the device and in the precision of the run.

    Implements Eq. (2.7).
    """

    model: Model
    loss: Loss
    inputs: Float[Tensor, "n *shape"]
    targets: Tensor
    bfloat16: bool = False
    augmentation: Augmentation | None = None
    """Augmentation of training images; batches then hold the indices of augmented examples."""

    @functools.cached_property
    def templates(self) -> list[Tensor]:
        """Tensors with the shapes of the parameters, which do not allocate their elements."""
        return [self.inputs.new_empty(()).expand(shape) for shape in self.model.shapes]

    @property
    def d(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.model.shapes)

    def batch_loss(
        self,
        views: Sequence[Tensor],
        inputs: Tensor,
        targets: Tensor,
        uniform: Tensor | None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return F_mb of one run (2.11), a 0-d tensor; the network computes in bfloat16 where the problem says so.

        buffers, where the model has any, are written in place.

        Implements Eq. (2.6), (2.11): over all examples it is the former.
        """
        if self.bfloat16:
            views = [view.bfloat16() for view in views]
            inputs = inputs.bfloat16()
        given = {} if buffers is None else {"buffers": buffers}
        outputs = self.model.apply(views, inputs, True, uniform, **given)
        return self.loss.mean(outputs.to(self.inputs.dtype), targets)

    def gather(self, indices: Int[Tensor, "runs batch"] | None, n_runs: int) -> tuple[Tensor, Tensor]:
        """Return the examples of each run's batch, ``[runs, batch, ...]``; None is the full batch."""
        if indices is None:
            return self.inputs.expand(n_runs, *self.inputs.shape), self.targets.expand(n_runs, *self.targets.shape)
        return self.examples(indices)

    def examples(self, indices: Int[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a batch as used in training, with augmentation where there is one."""
        if self.augmentation is not None:
            return self.augmentation(self.inputs, indices), self.targets[indices % self.augmentation.n]
        if indices.dim() == 1:
            return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)  # faster
        return self.inputs[indices], self.targets[indices]


def functional_gradient(
    problem: Problem, at: Float[Tensor, "runs d"], indices: Tensor | None, uniform: Tensor | None
) -> tuple[Float[Tensor, "runs d"], Float[Tensor, " runs"]]:
    """Return gradients and losses by torch.func, for one run without vmap; torch.compile compiles this function."""
    inputs, targets = problem.gather(indices, at.shape[0])

    def one_run(x: Tensor, inputs: Tensor, targets: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
        views = split(x, problem.model.shapes)
        grads, loss = grad_and_value(problem.batch_loss)(views, inputs, targets, uniform)
        return torch.cat([g.reshape(-1) for g in grads]), loss

    if at.shape[0] == 1:
        grad, loss = one_run(at[0], inputs[0], targets[0], None if uniform is None else uniform[0])
        return grad[None], loss[None]
    in_dims = (0, 0, 0, None if uniform is None else 0)
    return vmap(one_run, in_dims=in_dims, randomness="different")(at, inputs, targets, uniform)


def eager_gradient(
    problem: Problem,
    at: Float[Tensor, "runs d"],
    indices: Tensor | None,
    uniform: Tensor | None,
    buffers: Mapping[str, Tensor] | None = None,
) -> tuple[Float[Tensor, "runs d"], Float[Tensor, " runs"]]:
    """Return gradients and losses in eager mode; a single run by plain autograd, in half the time of torch.func."""
    if at.shape[0] > 1 and problem.model.batched:
        return functional_gradient(problem, at, indices, uniform)
    if at.shape[0] > 1:  # a module that vmap does not support
        one_by_one = []
        for i in range(at.shape[0]):
            one = slice(i, i + 1)
            batch, numbers = (None if t is None else t[one] for t in (indices, uniform))
            own = None if buffers is None else {name: buffer[one] for name, buffer in buffers.items()}
            one_by_one.append(eager_gradient(problem, at[one], batch, numbers, own))
        grads, losses = zip(*one_by_one, strict=True)
        return torch.cat(grads), torch.cat(losses)
    grads, loss = gradient_in_pieces(problem, at, indices, uniform, buffers)
    return _flatten_dense_tensors(grads)[None], loss


def gradient_in_pieces(
    problem: Problem,
    at: Float[Tensor, "1 d"],
    indices: Tensor | None,
    uniform: Tensor | None,
    buffers: Mapping[str, Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], Float[Tensor, " 1"]]:
    """Return the gradients with respect to each parameter tensor, and the loss, of a single run by plain autograd."""
    inputs, targets = problem.inputs, problem.targets
    if indices is not None:
        inputs, targets = problem.examples(indices.view(-1))
    leaves = _unflatten_dense_tensors(at.detach().view(-1), problem.templates)  # views, made by one call
    for leaf in leaves:
        leaf.requires_grad_()
    own = None if buffers is None else {name: buffer[0] for name, buffer in buffers.items()}
    loss = problem.batch_loss(leaves, inputs, targets, None if uniform is None else uniform[0], own)
    return torch.autograd.grad(loss, leaves, materialize_grads=True), loss.detach()[None]  # zeros for unused ones


def clipped(grad: Float[Tensor, "runs d"], norm: Float[Tensor, " runs"], longest: float) -> Float[Tensor, "runs d"]:
    """Return the gradients scaled down to the given norm where they are longer (Pascanu et al. 2013)."""
    return grad * (longest / norm).clamp(max=1)[:, None]
