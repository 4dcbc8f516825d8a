"""Calls a user's module before anything is written, to check that it fits the data, the loss and the engines."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from burgersgd.config import ConfigError
from burgersgd.datasets.dataset import one_line
from burgersgd.isolation import generator_states, generators_kept, seeded
from burgersgd.models.own_module import same_values
from burgersgd.models.wrapped import Wrapped
from burgersgd.training.gradients import Problem, functional_gradient, split

_log = logging.getLogger("burgersgd")


def probe(problem: Problem, n_outputs: int, n_runs: int, batch_sizes: Iterable[int]) -> None:
    """Call the user's module in both modes, also with unusual batch sizes, and record its properties.

    Outputs must be ``[examples, n_outputs]``. Sets Wrapped.random, Wrapped.changing and Wrapped.batched. Raises
    ConfigError, one line, for a module that does not fit.
    """
    model = problem.model
    if not isinstance(model, Wrapped):
        return
    with generators_kept():
        x = model.start().to(problem.inputs)
        states = generator_states()
        n = _unambiguous_size(problem, n_outputs)
        for train in (True, False):
            _check_outputs(_outputs(problem, model, x, n, train), n, n_outputs, problem.loss.name)
        for size in sorted(set(batch_sizes)):
            if size < 3:  # modules do not treat larger sizes differently
                _outputs(problem, model, x, size, True)
        model.random = generator_states() != states
        _check_hidden_state(problem, model, x, n)
        _check_gradient(problem, model, x, n)
        if model.random or model.changing:
            model.batched = False
        elif n_runs > 1:
            model.batched = _works_under_vmap(problem, x)


def _unambiguous_size(problem: Problem, n_outputs: int) -> int:
    """Return a number of examples that equals no other dimension, so that shapes cannot match by coincidence."""
    sizes = {n_outputs, *problem.inputs.shape[1:], *itertools.chain.from_iterable(problem.model.shapes)}
    return next(n for n in itertools.count(3) if n not in sizes)


def _examples(problem: Problem, n: int) -> Tensor:
    """Return the indices of n examples, with repetitions where the data set is smaller."""
    return torch.arange(n, device=problem.inputs.device) % len(problem.inputs)


def _outputs(problem: Problem, model: Wrapped, x: Tensor, n: int, train: bool, first: int = 0) -> Tensor:
    """Return the outputs of n examples, from number `first` on, and record the buffers that the call changes."""
    inputs = problem.inputs[(_examples(problem, n) + first) % len(problem.inputs)]
    buffers = {name: value.clone() for name, value in model.fixed.items()}
    before = x.clone()
    try:
        with torch.no_grad():
            outputs = model.apply(split(x, model.shapes), inputs, train, None, buffers)
            changed = {name for name, value in model.fixed.items() if not same_values(value, buffers[name])}
            model.changing = tuple(name for name in model.fixed if name in changed or name in model.changing)
            if train:
                _check_buffers_replaced(model, inputs)
    except ConfigError:
        raise
    except Exception as error:  # any error of the user's module
        shape = list(inputs.shape)
        mode = "training" if train else "evaluation"
        raise ConfigError(f"model: fails on inputs {shape} in {mode} mode: {one_line(error)}") from error
    for name, old, new in zip(model.names, split(before, model.shapes), split(x, model.shapes), strict=True):
        if not same_values(old, new):
            raise ConfigError(
                f"model: forward writes into the parameter {name}; compute the weight in forward instead "
                "(torch.nn.utils.parametrize), or initialise it before training"
            )
    return outputs


def _check_hidden_state(problem: Problem, model: Wrapped, x: Tensor, n: int) -> None:
    """Raise ConfigError where a call depends on earlier calls other than through buffers.

    In both modes, outputs must not change after a call in training mode with other examples: otherwise a run would
    depend on the other runs of its fleet, and could not be resumed.
    """

    def outputs(train: bool, first: int = 0) -> Tensor:
        with seeded(0):
            return _outputs(problem, model, x, n, train, first)

    before = outputs(False), outputs(True)
    outputs(True, first=n)
    for one, again in zip(before, (outputs(False), outputs(True)), strict=True):
        rounding = 1e-5 * float(one.abs().nan_to_num(0, 0, 0).max())  # GPUs may add in another order
        if not torch.allclose(one, again, rtol=1e-5, atol=rounding, equal_nan=True):
            raise ConfigError(
                "model: its outputs depend on earlier calls; state must be kept in buffers (register_buffer), "
                "and random numbers must come from torch's global generator"
            )


def _check_buffers_replaced(model: Wrapped, inputs: Tensor) -> None:
    """Raise ConfigError where a call in training mode replaces a buffer by another tensor."""
    plain = model.module().to(inputs.device, inputs.dtype).train()
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    plain(inputs.clone())
    for name, buffer in plain.named_buffers():
        if name in model.fixed and name not in model.changing and not same_values(before[name], buffer):
            raise ConfigError(
                f"model: forward replaces the buffer {name} by another tensor; change it in place (copy_, add_)"
            )


def _check_outputs(outputs: object, n: int, n_outputs: int, loss: str) -> None:
    """Raise ConfigError for outputs that are not a real tensor ``[n, n_outputs]``."""
    if not isinstance(outputs, Tensor):
        raise ConfigError(f"model: returns a {type(outputs).__name__}, must return one tensor [examples, outputs]")
    if list(outputs.shape) != [n, n_outputs]:
        raise ConfigError(
            f"model: returns outputs {list(outputs.shape)} for {n} examples, "
            f"must be [{n}, {n_outputs}] for this data set and loss={loss}"
        )
    if not outputs.is_floating_point():
        raise ConfigError(f"model: returns outputs of type {outputs.dtype}, must be real numbers")


def _check_gradient(problem: Problem, model: Wrapped, x: Tensor, n: int) -> None:
    """Raise ConfigError where the loss cannot be differentiated, or a gradient is not dense."""
    rows = _examples(problem, n)
    leaves = [part.detach().clone().requires_grad_() for part in split(x, model.shapes)]
    try:
        buffers = {name: model.fixed[name].clone() for name in model.changing}
        loss = problem.batch_loss(leaves, problem.inputs[rows], problem.targets[rows], None, buffers or None)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None]
    except Exception as error:
        raise ConfigError(f"model: the gradient cannot be computed: {one_line(error)}") from error
    for tensor in _leaf_tensors(loss):
        if not any(tensor is leaf for leaf in leaves):
            names = {id(p): name for name, p in model.original_parameters()}
            what = names.get(id(tensor), f"a tensor {list(tensor.shape)} that requires a gradient")
            raise ConfigError(
                f"model: forward uses {what}, which is not a parameter of the module and would not be trained; "
                "make it an nn.Parameter of the module and access it by self"
            )
    if all(grad is None for grad in grads):
        raise ConfigError("model: its outputs do not depend on any trainable parameter")
    for name, grad in zip(model.names, grads, strict=False):
        if grad is not None and grad.layout != torch.strided:
            raise ConfigError(f"model: the gradient of {name} is sparse, must be dense (sparse=False)")


def _leaf_tensors(loss: Tensor) -> list[Tensor]:
    """Return the tensors to which a backward pass from the loss would add gradients."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _works_under_vmap(problem: Problem, x: Tensor) -> bool:
    """Whether vmap can compute two runs as one batch; where it cannot, the reason is logged."""
    try:
        functional_gradient(problem, torch.stack([x, x]), _examples(problem, 6).view(2, 3), None)
    except Exception as error:
        _log.warning("the runs of this fleet are computed one by one: %s", one_line(error)[:200])
        return False
    return True
