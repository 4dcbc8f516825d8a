"""Checks whether a user's nn.Module can be trained as its author intended, and copies it."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def independent_copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares no tensor with module, without wrappers of torch.compile; training modes are kept.

    Raises ValueError, one line, for a module that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter) and id(value) not in memo:
                # Copied here: deepcopy rejects computed tensors (weight_norm) and keeps inference tensors.
                own = value.detach().clone()
                trains = value.requires_grad
                is_parameter = isinstance(value, nn.Parameter)
                memo[id(value)] = nn.Parameter(own, requires_grad=trains) if is_parameter else own
    try:
        return _without_compilation(copy.deepcopy(module, memo))
    except Exception as error:  # any error of the user's attributes: locks, files, generators
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model: {type(module).__name__} cannot be copied ({reason})") from error


def _without_compilation(module: nn.Module) -> nn.Module:
    """Return the module with every torch.compile wrapper replaced by its module (names without _orig_mod)."""
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return _without_compilation(inner)
    for name, child in list(module.named_children()):
        plain = _without_compilation(child)
        if plain is not child:
            setattr(module, name, plain)
    return module


def check(module: nn.Module) -> None:
    """Raise ValueError for a module that would not be trained as its author intended, with one line on what to do."""
    for part in module.modules():
        kind = type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(f"model: {kind} is a ScriptModule; pass the module from which it was made")
        if kind in PARALLEL:
            raise ValueError(
                f"model: {kind} distributes a module over devices; pass the module that it wraps (model.module)"
            )
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
            raise ValueError(
                f"model: {kind} with max_norm changes its weight in forward; bound the weight by "
                "torch.nn.utils.parametrize instead"
            )
        for name, value in vars(part).items():
            if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
                raise ValueError(
                    f"model: {kind}.{name} is a random generator that seed does not control; use torch's global one"
                )
    named = list(module.named_parameters())
    if not named:
        raise ValueError("model: the module has no parameters")
    for name, p in (*named, *module.named_buffers()):
        if is_lazy(p):
            raise ValueError(f"model: {name} has no shape yet; call the (lazy) module once on a batch before training")
        if p.is_meta:
            raise ValueError(f"model: {name} is on the meta device and has no values; initialise the module first")
    if not any(p.requires_grad for _, p in named):
        raise ValueError("model: requires_grad is False for every parameter, so there is nothing to train")
    for name, p in named:
        if p.requires_grad and p.is_complex():
            raise ValueError(f"model: {name} is {p.dtype}; trainable parameters must be real (torch.view_as_real)")
        if p.requires_grad and (p._backward_hooks or p._post_accumulate_grad_hooks):
            raise ValueError(
                f"model: {name} has a gradient hook, which would be ignored; change the weight in forward instead "
                "(torch.nn.utils.parametrize)"
            )
        if p.requires_grad and p.layout != torch.strided:
            raise ValueError(f"model: {name} is {p.layout}; trainable parameters must be dense")
        if p.requires_grad and not _is_finite(p):
            raise ValueError(f"model: {name} has values that are not finite; initialise the module first")
    _check_overlaps([*named, *module.named_buffers()])


def _check_overlaps(named: list[tuple[str, Tensor]]) -> None:
    """Raise ValueError for a trainable parameter that shares memory with another tensor: a step would change both."""
    ranges = []
    for name, p in named:
        if p.layout == torch.strided and p.numel():
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            ranges.append((p.data_ptr(), p.data_ptr() + extent * p.element_size(), name, p.requires_grad))
    ranges.sort()
    for (_, end, first, trained), (start, _, second, also) in itertools.pairwise(ranges):
        if start < end and (trained or also):
            first, second = sorted((first, second))
            raise ValueError(
                f"model: {first} and {second} share memory; use the same nn.Parameter for both to tie them"
            )


def same_values(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _is_finite(p: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.isfinite(p).all())
