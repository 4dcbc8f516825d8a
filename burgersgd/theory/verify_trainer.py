"""The checks of `burgersgd verify` for the trainer: networks and gradients (2.1)-(2.13), the sampler (5.17)-(5.19)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from burgersgd.datasets.batches import Batches
from burgersgd.losses import LOSSES
from burgersgd.models.mlp import Mlp
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.optimizers.paper import PaperLiteral
from burgersgd.optimizers.protocol import Rule
from burgersgd.optimizers.sgd import Sgd
from burgersgd.theory import local_entropy
from burgersgd.theory.paths import UNUSED, always, last, normals, walk
from burgersgd.theory.verify_rows import SIGMAS, Row, agrees, check, misprint, scored
from burgersgd.training.gradients import Problem, eager_gradient

Array = NDArray[np.float64]

CHAINS = 20_000
"""Independent chains: a factor of 2 in a variance is 50 standard errors."""
ROUNDING = "rounding, float64"

A, CENTER, GAMMA, NU, LR = 1.5, 0.7, 0.5, 0.2, 0.1  # F = a (y - c)^2 / 2
KAPPA = A + 1 / GAMMA
HYPER = UNUSED | {"lr": LR, "nu": NU, "gamma": GAMMA, "outer_step": 0.2, "ema_weight": 1.0}
"""The floats of LocalEntropy."""


def slope(y: Array) -> Array:
    """Return F'(y) of the quadratic."""
    return A * (y - CENTER)


def variance_error(variance: float) -> float:
    """Return the standard error of the sample variance of CHAINS normal numbers."""
    return variance * math.sqrt(2 / (CHAINS - 1))


# -------------------------------------------------------------------------------------------------- (2.1)-(2.13)


@check("optimizer")
def network_and_gradients() -> list[Row]:
    """(2.1)-(2.13): the network, its loss, mini-batches and the step of SGD, written out by hand."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    model = Mlp((3, 4, 2), activation="tanh")
    inputs, targets, x = draw(12, 3), draw(12, 2), draw(1, sum(math.prod(s) for s in model.shapes))
    problem = Problem(model, LOSSES["squared_error"], inputs, targets)
    W1, b1, W2, b2 = (p.numpy() for p in torch.split(x[0], [math.prod(s) for s in model.shapes]))
    W1, W2 = W1.reshape(4, 3), W2.reshape(2, 4)
    outputs = np.tanh(inputs.numpy() @ W1.T + b1) @ W2.T + b2
    squashed = np.tanh(outputs)  # (2.2) to the letter: sigma after the last layer too
    views = [torch.from_numpy(v) for v in (W1, b1, W2, b2)]
    made = model.apply(views, inputs, False, None).numpy()
    risk = float(((outputs - targets.numpy()) ** 2).sum(1).mean())
    loss = float(problem.batch_loss(views, inputs, targets, None))

    full, _ = eager_gradient(problem, x, None, None)
    order = Batches(12, 3, torch.tensor([0]))
    drawn = [order.indices(k, 1)[0] for k in range(order.evaluations_per_epoch)]
    first = torch.arange(3).expand_as(drawn[0])  # (2.11) to the letter: samples i = 1..B in every batch
    batches = [*drawn, first]
    errors = torch.stack([eager_gradient(problem, x, batch, None)[0] for batch in batches]) - full
    biases = [float(bias.abs().max()) for bias in (errors[:-1].mean(0), errors[-1])]

    rule = Sgd()
    hyper = {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}
    fixed = always(lambda y: full.numpy())
    stepped = list(walk(rule, hyper, x.numpy(), fixed, 1, lambda k: torch.zeros_like(x)))[-1].x
    gaps = [np.abs(made - outputs).max(), np.abs(made - squashed).max()]
    return [
        misprint(
            "2.2",
            "network - formula with an affine last layer; printed: sigma on it",
            gaps[0],
            gaps[1],
            0,
            1e-12,
            ROUNDING,
        ),
        agrees("2.1, 2.3, 2.4", "y(theta; x) = T_2 sigma(T_1 theta)", float(gaps[0]), 0, 1e-12, ROUNDING),
        agrees("2.6", "loss over all data - mean of l(y_i, y_x(theta_i))", loss - risk, 0, 1e-12, ROUNDING),
        misprint(
            "2.11, 2.13",
            "mean over an epoch of grad F_mb - grad F; printed: samples i = 1..B in every batch",
            biases[0],
            biases[1],
            0,
            1e-13,
            ROUNDING,
        ),
        agrees(
            "2.9, 2.10, 2.12",
            "x_1 - (x_0 - lr grad F)",
            float((stepped - (x - 0.3 * full)).abs().max()),
            0,
            1e-15,
            ROUNDING,
        ),
    ]


# -------------------------------------------------------------------------------------------------- (5.18), (5.19)


def cycles(rule: LocalEntropy, start: Array, n: int, seed: int) -> Array:
    """Return x ``[chains]`` after n cycles of the rule on the quadratic, from x = y = start ``[1, chains]``."""
    noise, steps = normals(seed, *start.shape), n * rule.gradients_per_cycle
    return last(walk(rule, HYPER, start, always(slope), steps, noise)).x.numpy().ravel()


def frozen(rule: Rule, hyper: dict[str, float], start: float, steps: int, seed: int) -> Array:
    """Return y ``[chains]`` after some steps of a rule with x frozen at start."""
    x = np.full((1, CHAINS), start)
    return last(walk(rule, hyper, x, always(slope), steps, normals(seed, 1, CHAINS))).y.numpy().ravel()


@check("optimizer")
def fast_point() -> list[Row]:
    """(5.18): mean and variance of the fast point on a quadratic, stepped by the rule that trains networks."""
    x = 1.9
    m, rho = (x + A * GAMMA * CENTER) / (1 + A * GAMMA), 1 - LR * KAPPA

    def variance(T: float, lr: float = LR) -> float:
        return 2 * T * lr / (lr * KAPPA * (2 - lr * KAPPA))

    rule = LocalEntropy(inner_steps=1000, averaging="last")
    early = frozen(rule, HYPER, x, 3, 11)
    late = frozen(rule, HYPER, x, 45, 12)
    V = variance(2 * NU)
    measured = float(late.var(ddof=1))
    early_variance = V * (1 - rho**6)
    half = LR / 2
    literal = [
        float(frozen(PaperLiteral(noise="double"), {"lr": lr, "nu": NU, "gamma": GAMMA}, x, n, 13).var(ddof=1))
        for lr, n in ((LR, 60), (half, 120))
    ]
    exact = "exact law of the discrete chain"
    return [
        scored(
            "5.18",
            "E y_3 = m + rho^3 (y_0 - m)",
            float(early.mean()),
            m + rho**3 * (x - m),
            math.sqrt(early_variance / CHAINS),
            exact,
        ),
        scored("5.18", "E y in the long run = m", float(late.mean()), m, math.sqrt(V / CHAINS), exact),
        scored(
            "5.18",
            "Var y_3 from a fixed start",
            float(early.var(ddof=1)),
            early_variance,
            variance_error(early_variance),
            exact,
        ),
        scored("5.18", "Var y, temperature 2 nu", measured, V, variance_error(V), exact),
        misprint(
            "5.18",
            "Var y of the consistent rule (T = 2 nu); as printed, dW of scale sqrt(dt): T = nu dt",
            measured,
            literal[0],
            V,
            SIGMAS * variance_error(V),
            "6 standard errors",
        ),
        scored(
            "5.18",
            "printed: its variance is that of T = nu dt",
            literal[0],
            variance(NU * LR),
            variance_error(variance(NU * LR)),
            exact,
        ),
        scored(
            "5.18",
            "printed, half the step: T is halved too",
            literal[1],
            variance(NU * half, half),
            variance_error(variance(NU * half, half)),
            exact,
        ),
    ]


@check("optimizer")
def momentum() -> list[Row]:
    """(5.18) with momentum beta: the noise goes through the velocity, so that y keeps the temperature 2 nu."""
    rows = []
    for beta in (0.5, 0.9):
        rule = LocalEntropy(inner_steps=1000, averaging="last", has_momentum=True)
        sample = frozen(rule, HYPER | {"momentum": beta}, 1.9, 200, 14)
        exact = 2 * NU / KAPPA / (1 - LR * KAPPA / (2 * (1 + beta)))  # of the affine recursion of y and its velocity
        why = "exact law of the discrete chain"
        what = f"Var y with momentum {beta:g}, temperature 2 nu"
        rows.append(scored("5.18", what, float(sample.var(ddof=1)), exact, variance_error(exact), why))
    return rows


@check("optimizer")
def slow_point() -> list[Row]:
    """(5.19): whole cycles of the consistent rule on a quadratic: the descent of x, its stationary variance."""
    x0 = np.full((1, CHAINS), 1.9)
    p, rho, L, r = 1 / (1 + A * GAMMA), 1 - LR * KAPPA, 10, 0.2
    theta = rho * (1 - rho**L) / (L * (1 - rho))
    step = np.array([[1 - r + r * (1 - theta) * p, r * theta], [(1 - rho**L) * p, rho**L]])
    mean = CENTER + (np.linalg.matrix_power(step, 3) @ [1.9 - CENTER, 1.9 - CENTER])[0]
    early = cycles(LocalEntropy(inner_steps=L), x0, 3, 21)
    rows = [
        scored(
            "5.19",
            "E x after 3 cycles, recursion of the means",
            float(early.mean()),
            float(mean),
            float(early.std()) / math.sqrt(CHAINS),
        ),
    ]
    for rule, known in ((LocalEntropy(L), 0.01530), (LocalEntropy(L, averaging="last"), 0.03456)):
        x = cycles(rule, np.full((1, CHAINS), CENTER), 60, 22)
        what = "the mean of y" if rule.averaging == "uniform" else "the last y"
        variance, why = float(x.var(ddof=1)), "exact law, 4 digits known"
        rows.append(scored("5.19", f"stationary Var x, moving to {what}", variance, known, variance_error(known), why))
    return rows


@check("optimizer")
def printed_period() -> list[Row]:
    """(5.19): with the printed period N the slow point never moves before the last step; with L it does."""
    loss, nu, gamma, dt, start, period, moves = local_entropy.RIPPLE, 0.1, 0.5, 0.05, 1.2, 20, 20
    chains, steps = 6000, period * moves + 1

    def descend(viscosity: float) -> float:
        x = start
        for _ in range(moves):
            x -= dt * float(local_entropy.local_entropy(loss.value, x, gamma, viscosity).gradient)
        return x

    def path(rule: PaperLiteral) -> list[Array]:
        begin, hyper = np.full((1, chains), start), {"lr": dt, "nu": nu, "gamma": gamma}
        states = walk(rule, hyper, begin, always(loss.gradient), steps, normals(31, 1, chains))
        return [state.x.numpy() for state in states]

    intended, literal = path(PaperLiteral(period=period))[-1], path(PaperLiteral())
    error = float(intended.std()) / math.sqrt(chains)
    moved = max(float(np.abs(x - start).max()) for x in literal[:-1])
    return [
        agrees("5.19", "printed period N: largest |x_k - x_0|, k = 1..N, is 0", moved, 0, 0, "x is not touched"),
        misprint(
            "5.19",
            "E x_N against descent on the local entropy of nu dt / 2: period L = 20; printed period N",
            float(intended.mean()),
            float(literal[-2].mean()),
            descend(nu * dt / 2),
            SIGMAS * error + 1e-4,
            "6 standard errors + the finite L",
        ),
    ]
