"""The checks of `burgersgd verify` for the trainer: networks and gradients (2.1)-(2.13), the sampler (5.17)-(5.19)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from burgersgd.datasets.batches import Batches
from burgersgd.losses import LOSSES
from burgersgd.models.mlp import Mlp
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.optimizers.paper import PaperLiteral
from burgersgd.optimizers.sgd import Sgd
from burgersgd.theory import local_entropy
from burgersgd.theory.paths import end_of_walk, walk
from burgersgd.theory.quadrature import Array
from burgersgd.theory.verify_rows import ROUNDING, SIGMAS, Row, agrees, check, misprint, scored
from burgersgd.training.gradients import Problem, eager_gradient, split

CHAINS = 20_000
"""Number of independent chains; a factor of 2 in a variance is then 50 standard errors."""

A, CENTER, GAMMA, NU, LR = 1.5, 0.7, 0.5, 0.2, 0.1  # F = a (y - c)^2 / 2
KAPPA = A + 1 / GAMMA


def slope(y: Array) -> Array:
    """Return F'(y) of the quadratic."""
    return A * (y - CENTER)


def variance_error(variance: float) -> float:
    """Return the standard error of the sample variance of CHAINS normal numbers."""
    return variance * math.sqrt(2 / (CHAINS - 1))


# -------------------------------------------------------------------------------------------------- (2.1)-(2.13)


@check("optimizer")
def network_and_gradients() -> Iterator[Row]:
    """(2.1)-(2.13): the network, its loss, mini-batches and the steps of SGD against explicit formulas."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    model, n, size = Mlp((3, 4, 2), activation="tanh"), 60, 15
    inputs, targets, x = draw(n, 3), draw(n, 2), draw(1, sum(math.prod(s) for s in model.shapes))
    problem = Problem(model, LOSSES["squared_error"], inputs, targets)
    views = split(x[0], model.shapes)
    W1, b1, W2, b2 = (v.numpy() for v in views)
    hidden = np.tanh(inputs.numpy() @ W1.T + b1)
    outputs = hidden @ W2.T + b2
    made = model.apply(views, inputs, False, None).numpy()
    networks = [made - v for v in (outputs, np.tanh(outputs))]  # (2.2) prints sigma on the last layer, too

    def gradient(rows: Any) -> Array:  # of the mean of |z - t|^2 over these rows, by the chain rule
        back = 2 * (outputs[rows] - targets.numpy()[rows]) / len(outputs[rows])
        inner = back @ W2 * (1 - hidden[rows] ** 2)
        parts = (inner.T @ inputs.numpy()[rows], inner.sum(0), back.T @ hidden[rows], back.sum(0))
        return np.concatenate([part.ravel() for part in parts])

    each = ((outputs - targets.numpy()) ** 2).sum(1)
    order, one = Batches(n, size, torch.tensor([0])), Batches(n, 1, torch.tensor([0]))
    drawn = [order.indices(k, 1)[0] for k in range(order.evaluations_per_epoch)]
    losses = [float(problem.batch_loss(views, inputs[b[0]], targets[b[0]], None)) for b in drawn]
    in_loss, printed_loss = (  # (2.11) as printed: samples i = 1..B in every batch
        max(abs(a - each[rows].mean()) for a, rows in zip(losses, batches, strict=True))
        for batches in ([b[0].numpy() for b in drawn], [slice(size)] * len(drawn))
    )
    grads = np.stack([eager_gradient(problem, x, b, None)[0][0].numpy() for b in drawn])
    bias = grads.mean(0) - gradient(slice(None))
    loss = float(problem.batch_loss(views, inputs, targets, None)) - float(each.mean())

    def stepped(batch: torch.Tensor | None) -> Array:
        grad = eager_gradient(problem, x, batch, None)[0].numpy()
        return end_of_walk(Sgd(), x.numpy(), lambda y: grad, 1, lr=0.3).x.numpy()[0]

    single = one.indices(0, 1)[0]
    choices = ((None, slice(None)), (single, single[0].numpy()), (drawn[1], drawn[1][0].numpy()))
    full, sample, batch = (stepped(b) - x[0].numpy() + 0.3 * gradient(r) for b, r in choices)
    of, of_step, of_loss = "models.mlp.Mlp.apply", "optimizers.sgd.Sgd.step", "training.gradients.Problem.batch_loss"
    of_batches, unbiased = "datasets.batches.Batches.indices", "mean over an epoch of grad F_mb - grad F"
    last_layer = "T_2 sigma(T_1 theta); printed: sigma on the last layer"
    mean, same = "F_mb - mean over I_k of l(y_i, y_x(theta_i)); printed: over i = 1..B", "x_1 - (x_0 - lr grad F_mb)"
    yield misprint("2.1, 2.2, 2.3, 2.4", of, last_layer, networks, 0, 1e-12, ROUNDING)
    yield agrees("2.6, 2.7", of_loss, "loss over all data - mean of l(y_i, y_x(theta_i))", loss, 0, 1e-12, ROUNDING)
    yield misprint("2.11", of_loss, mean, (in_loss, printed_loss), 0, 1e-12, ROUNDING)
    yield agrees("2.13", of_batches, unbiased, bias, 0, 1e-13, ROUNDING)
    yield agrees("2.9", of_step, "x_1 - (x_0 - lr grad F)", full, 0, 1e-14, ROUNDING)
    yield agrees("2.10", of_step, "x_1 - (x_0 - lr grad F_i), one sample", sample, 0, 1e-14, ROUNDING)
    yield agrees("2.12", f"{of_step}, {of_loss}", same, batch, 0, 1e-14, ROUNDING)


# -------------------------------------------------------------------------------------------------- (5.18), (5.19)

STEP, LITERAL = "optimizers.local_entropy.LocalEntropy.step", "optimizers.paper.PaperLiteral.step"
CHAIN = "6 standard errors; exact law of the discrete chain"


def after(steps: int, rule: Any, start: float, seed: int, **hyper: float) -> tuple[Array, Array]:
    """Return x and y ``[chains]`` after these steps of the rule on the quadratic, from x = y = start."""
    hyper = {"lr": LR, "nu": NU, "gamma": GAMMA, "outer_step": 0.2} | hyper
    state = end_of_walk(rule, np.full((1, CHAINS), start), slope, steps, seed=seed, **hyper)
    return state.x.numpy().ravel(), state.y.numpy().ravel()


@check("optimizer")
def fast_point() -> Iterator[Row]:
    """(5.18): mean and variance of the fast point on a quadratic, stepped by the rule that trains networks."""
    x = 1.9
    m, rho = (x + A * GAMMA * CENTER) / (1 + A * GAMMA), 1 - LR * KAPPA

    def variance(T: float, lr: float = LR) -> float:
        return 2 * T * lr / (lr * KAPPA * (2 - lr * KAPPA))

    rule = LocalEntropy(inner_steps=1000, averaging="last")
    early, late = (after(steps, rule, x, seed)[1] for steps, seed in ((3, 11), (45, 12)))
    V, mean = variance(2 * NU), m + rho**3 * (x - m)
    early_variance = V * (1 - rho**6)
    literal = {
        lr: after(steps, PaperLiteral(noise="double"), x, 13, lr=lr)[1].var(ddof=1)
        for lr, steps in ((LR, 60), (LR / 2, 120))
    }
    errors = [math.sqrt(v / CHAINS) for v in (early_variance, V)]
    error = variance_error(early_variance)
    what = "Var y of the consistent rule (T = 2 nu); as printed, dW of scale sqrt(dt): T = nu dt"
    yield scored("5.18", STEP, "E y_3 = m + rho^3 (y_0 - m)", early.mean(), mean, errors[0], CHAIN)
    yield scored("5.18", STEP, "E y in the long run = m", late.mean(), m, errors[1], CHAIN)
    yield scored("5.18", STEP, "Var y_3 from a fixed start", early.var(ddof=1), early_variance, error, CHAIN)
    yield misprint("5.18", STEP, what, (late.var(ddof=1), literal[LR]), V, SIGMAS * variance_error(V), CHAIN)
    for lr, found in literal.items():
        exact = variance(NU * lr, lr)
        what = f"printed, dt = {lr:g}: its variance is that of T = nu dt"
        yield scored("5.18", LITERAL, what, found, exact, variance_error(exact), CHAIN)


@check("optimizer")
def momentum() -> Iterator[Row]:
    """(5.18) with momentum beta: the noise enters through the velocity, so that y keeps the temperature 2 nu."""
    for beta in (0.5, 0.9):
        rule = LocalEntropy(inner_steps=1000, averaging="last", has_momentum=True)
        sample = after(200, rule, 1.9, 14, momentum=beta)[1]
        exact = 2 * NU / KAPPA / (1 - LR * KAPPA / (2 * (1 + beta)))  # of the affine recursion of y and its velocity
        what = f"Var y with momentum {beta:g}, temperature 2 nu"
        yield scored("5.18", STEP, what, sample.var(ddof=1), exact, variance_error(exact), CHAIN)


@check("optimizer")
def slow_point() -> Iterator[Row]:
    """(5.19): cycles of the consistent rule on a quadratic, the descent of x and its stationary variance."""
    p, rho, L, r = 1 / (1 + A * GAMMA), 1 - LR * KAPPA, 10, 0.2
    theta = rho * (1 - rho**L) / (L * (1 - rho))
    step = np.array([[1 - r + r * (1 - theta) * p, r * theta], [(1 - rho**L) * p, rho**L]])
    mean = CENTER + (np.linalg.matrix_power(step, 3) @ [1.9 - CENTER, 1.9 - CENTER])[0]
    early = after(3 * L, LocalEntropy(inner_steps=L), 1.9, 21)[0]
    error = early.std() / math.sqrt(CHAINS)
    of, why = f"{STEP}, optimizers.local_entropy.LocalEntropy.end_cycle", "6 standard errors; 4 digits are known"
    yield scored("5.19", of, "E x after 3 cycles, recursion of the means", early.mean(), mean, error, CHAIN)
    for rule, known in ((LocalEntropy(L), 0.01530), (LocalEntropy(L, averaging="last"), 0.03456)):
        x = after(60 * L, rule, CENTER, 22)[0]
        what = "stationary Var x, moving to " + ("the mean of y" if rule.averaging == "uniform" else "the last y")
        yield scored("5.19", of, what, x.var(ddof=1), known, variance_error(known), why)


@check("optimizer")
def printed_period() -> Iterator[Row]:
    """(5.19): with the printed period N the slow point does not move before the last step; with period L it does."""
    loss, nu, gamma, dt, start, period, moves = local_entropy.RIPPLE, 0.1, 0.5, 0.05, 1.2, 20, 20
    chains, steps, descent = 6000, period * moves + 1, start
    for _ in range(moves):
        descent -= dt * float(local_entropy.local_entropy(loss.value, descent, gamma, nu * dt / 2).gradient)

    def path(rule: PaperLiteral) -> list[Array]:
        states = walk(rule, np.full((1, chains), start), loss.gradient, steps, seed=31, lr=dt, nu=nu, gamma=gamma)
        return [state.x.numpy() for state in states]

    intended, literal = path(PaperLiteral(period=period))[-1], path(PaperLiteral())
    mean, tolerance = float(intended.mean()), SIGMAS * float(intended.std()) / math.sqrt(chains) + 1e-4
    moved = max(float(np.abs(x - start).max()) for x in literal[:-1])
    still, why = "printed period N: largest |x_k - x_0|, k = 1..N, is 0", "6 standard errors + E y after 20 steps: 1e-4"
    what = "E x_N against descent on the local entropy of nu dt / 2: period L = 20; printed period N"
    yield agrees("5.19", LITERAL, still, moved, 0, 0, "x is not touched")
    yield misprint("5.19", LITERAL, what, (mean, float(literal[-2].mean())), descent, tolerance, why)
