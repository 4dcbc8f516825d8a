"""Explains why a run diverged or will diverge: compares lr with the curvature (stability bounds of explicit Euler).

On a quadratic of curvature a, every step multiplies y by 1 - lr (a + 1 / gamma), which is stable if
lr (a + 1 / gamma) < 2; momentum changes the bound. A loss is no quadratic, but lr has to be compared with its largest
Hessian eigenvalue L at a point where the run had not diverged yet.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd import streams
from burgersgd.optimizers.protocol import Clock, Rule, Stability
from burgersgd.streams import Purpose
from burgersgd.training.gradients import Problem, split

if TYPE_CHECKING:
    from burgersgd.training.fleet import Fleet

SAMPLES = 32
"""Number of gradient evaluations, spread over the budget, at which the settings are checked."""

SMALL_STEP_SHARE = 0.01
"""Fraction of the bound on lr below which steps count as small: the steepest direction needs about 100 of them."""


SAFE_SHARE = 0.5
"""Fraction of the bound that optimizer.lr=auto uses; a choice that was not tuned."""


class Settings(NamedTuple):
    """The numbers that determine whether a step is stable on a quadratic; fields as in the coefficients of rules."""

    lr: float
    pull: float = 0.0  # 1 / gamma, 0 for rules without a fast point
    slow_rate: float = 0.0  # x moves by slow_rate (y - x) in the same step
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    def bound(self) -> float:
        """Bound on stable stiffness: 2; 2 (1 + b) with heavy-ball momentum b, 2 (1 + b) / (1 + 2 b) with Nesterov's."""
        return 2 * (1 + self.momentum) / (1 + 2 * self.momentum * self.nesterov)

    def stiffness(self, curvature: float) -> float:
        """Return lr (curvature + weight decay + 1 / gamma), plus a term if x moves in the same step.

        The matrix [[1 - lr (a + 1 / gamma), lr / gamma], [s, 1 - s]] of (y, x) has an eigenvalue -1 where
        lr (a + 1 / gamma) + s (1 - lr a / 2) is 2.
        """
        a = curvature + self.weight_decay
        return self.lr * (a + self.pull) + self.slow_rate * (1 - self.lr * a / 2)


def top_eigenvalue(problem: Problem, x: Float[Tensor, " d"], n_examples: int = 256, n_iterations: int = 20) -> float:
    """Return the largest |eigenvalue| of the Hessian of one run's loss at x, estimated by power iteration.

    The loss is that of n_examples spaced evenly in the training part, without dropout. The estimate |H v| with |v| = 1
    never exceeds the true value; it is nan where the loss is not finite or cannot be differentiated twice. The same
    arguments give the same number: v is initialised from the stream (0, STABILITY, 0).
    """
    n = len(problem.targets)
    rows = torch.linspace(0, n - 1, min(n, n_examples), device=x.device).long()
    leaf = x.detach().clone().requires_grad_()
    # not problem.batch_loss, in which a user's module would draw dropout masks and bfloat16 would round the curvature
    outputs = problem.model.apply(split(leaf, problem.model.shapes), problem.inputs[rows], False, None)
    loss = problem.loss.mean(outputs, problem.targets[rows])
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear in x
        return 0.0
    seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    v = streams.normal_(torch.empty_like(leaf)[None, None].detach(), seed, Purpose.STABILITY, 0)[0, 0]
    norm = torch.linalg.vector_norm(v)
    for _ in range(n_iterations):
        v = v / norm
        try:
            (v,) = torch.autograd.grad(gradient, leaf, v, retain_graph=True)
        except RuntimeError:  # an operation of the user's module has no second derivative
            return math.nan
        norm = torch.linalg.vector_norm(v)
        if not norm > 0:  # the Hessian is 0 there, or nan
            break
    return float(norm)


def settings_at(fleet: Fleet, step: int) -> list[Settings] | None:
    """Return the settings of every run at one gradient evaluation; None for rules whose bound is not known (AdamW)."""
    of_all = fleet.rule.stability(fleet.exact_at(step))
    return None if of_all is None else _settings(of_all, fleet.n_runs)


def settings_over(fleet: Fleet, evaluations: list[int]) -> list[list[Settings]]:
    """Return the settings of every run at each of the given gradient evaluations; empty where no bound is known."""
    steps = torch.tensor(evaluations) // fleet.points
    c = fleet.inputs.exact_coefficients_of(steps)
    n, points = fleet.n_runs, fleet.points
    wide = (field.expand(len(steps), n * points, -1)[:, ::points].flatten(0, 1) for field in c)
    of_all = fleet.rule.stability(type(c)(*wide))
    if of_all is None:
        return []
    found = _settings(of_all, len(steps) * n)
    return [found[at : at + n] for at in range(0, len(found), n)]


def _settings(of_all: Stability, n: int) -> list[Settings]:
    """Return the stability numbers of a rule as n Settings."""
    columns = [f.expand(n, -1).amax(1).tolist() if isinstance(f, Tensor) else [f] * n for f in of_all]
    return [Settings(*run) for run in zip(*columns, strict=True)]


def safe_lr(rule: Rule, hyper: dict[str, float], budget: int, lip: float, share: float) -> float | None:
    """Return the learning rate with which a rule reaches the fraction `share` of its bound at curvature lip.

    The largest value over the budget counts, without a schedule. Return None for a rule whose bound is not known or is
    exceeded at every rate.
    """
    step = torch.linspace(0, budget - 1, min(budget, SAMPLES), dtype=torch.float64).long().view(-1, 1, 1)
    cycle = rule.gradients_per_cycle
    clock = Clock(step, step.double() / budget, step // cycle, step % cycle, budget)

    def reached(lr: float) -> float:
        columns = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in (hyper | {"lr": lr}).items()}
        c = rule.coefficients(columns, torch.ones(len(step), 1, 1, dtype=torch.float64), clock)
        of_all = rule.stability(type(c)(*(field[:, 0] for field in c)))
        if of_all is None:
            return math.inf
        return max(s.stiffness(lip) / s.bound for s in _settings(of_all, len(step)))

    low, high = math.log(1e-12), math.log(1e6)
    if reached(math.exp(low)) >= share:
        return None
    while high - low > 1e-3:  # reached(lr) increases up to the bound and is far above it afterwards
        middle = (low + high) / 2
        low, high = (middle, high) if reached(math.exp(middle)) < share else (low, middle)
    return math.exp(low)


def lr_gamma_warnings(fleet: Fleet) -> list[str | None]:
    """Return for every run a warning of one line if lr / gamma is unstable for any loss, else None.

    The entire budget is examined: scoping decreases gamma, schedules decrease lr.
    """
    columns = sampled_settings(fleet)
    worst = [max(run, key=lambda s: s.stiffness(0.0) / s.bound) for run in zip(*columns, strict=True)]
    lr = fleet.hyper["lr"].flatten().tolist()
    return [lr_gamma_warning(*pair) for pair in zip(worst, lr, strict=True)] if worst else [None] * fleet.n_runs


def sampled_settings(fleet: Fleet) -> list[list[Settings]]:
    """Return the settings of every run at up to SAMPLES gradient evaluations, spaced evenly over the budget."""
    evaluations = torch.linspace(0, fleet.budget - 1, min(fleet.budget, SAMPLES), dtype=torch.float64).long()
    return settings_over(fleet, evaluations.tolist())


def lr_gamma_warning(settings: Settings, lr: float) -> str | None:
    """Return a warning of one line if the pull alone, at curvature 0, exceeds the bound, else None.

    lr is the rate before any schedule.
    """
    settings = settings._replace(weight_decay=0.0)
    stiffness, bound = settings.stiffness(0.0), settings.bound
    if settings.pull == 0 or stiffness < bound:
        return None
    remedy = f"optimizer.lr < {_below(lr * bound / stiffness)} or " if math.isfinite(stiffness) else ""
    return (
        f"{_formula(settings, None)} reaches {stiffness:.3g} >= {bound:.3g}: every step moves y further away from x; "
        f"try {remedy}a larger optimizer.gamma (gamma_min with gamma_scoping)"
    )


BEST = "where the validation error was lowest"
START = "at the start"


def stability_hint(settings: Settings, lip: float, where: str = BEST) -> str:
    """Return one line on which bound the settings exceed where the loss has curvature lip, or that they exceed none."""
    if not math.isfinite(lip):
        return "the curvature could not be measured; try a smaller optimizer.lr or trainer.clip_norm=1"
    stiffness, bound = settings.stiffness(lip), settings.bound
    compared = f"{_formula(settings, 'L')} = {stiffness:.3g} {'>=' if stiffness >= bound else '<'} {bound:.3g}"
    compared += f" with L = {lip:.3g} (largest Hessian eigenvalue {where})"
    if stiffness < bound:
        return f"{compared}: the step is stable there; try trainer.clip_norm=1, and check the scale of the data"
    larger = ", or a larger optimizer.gamma" if settings._replace(pull=0.0).stiffness(lip) < bound else ""
    rate = lip + settings.weight_decay + settings.pull + settings.slow_rate / settings.lr
    return f"{compared}: try optimizer.lr < {_below(bound / rate)}{larger}"


def divergence_hint(fleet: Fleet, run: int, step: int, x: Float[Tensor, " d"]) -> str:
    """Return one line on why a run of a fleet diverged at a step, from its settings there and the curvature at x.

    The curvature is measured at x, the point of the run's lowest validation error: where the loss has already exploded,
    its curvature is 0 or extremely large and says nothing about lr.
    """
    settings = settings_at(fleet, step)
    if settings is None:
        return "no bound on lr is known for this optimizer; try a smaller optimizer.lr or trainer.clip_norm=1"
    return stability_hint(settings[run], top_eigenvalue(fleet.problem, x))


def learning_hint(fleet: Fleet, run: int, x: Float[Tensor, " d"], columns: list[list[Settings]]) -> str:
    """Return one line on why a run ended no better than guessing; x is its starting point, columns sampled_settings.

    Dead units and saturated networks have no curvature, so only that at the start is informative.
    """
    if fleet.rule.budget_key() == "period=null":
        return "x moves only at the last gradient evaluation (optimizer.period=null); set optimizer.period"
    if not columns:
        return "no bound on lr is known for this optimizer; try another optimizer.lr, or a larger trainer.budget"
    lip = top_eigenvalue(fleet.problem, x)
    settings = max((column[run] for column in columns), key=lambda s: s.stiffness(lip) / s.bound)
    if settings.stiffness(lip) < SMALL_STEP_SHARE * settings.bound:
        product = f"{_formula(settings, 'L')} = {settings.stiffness(lip):.2g} with L = {lip:.3g} {START}"
        return f"{product}: the steps are very small; try a larger optimizer.lr or a larger trainer.budget"
    return stability_hint(settings, lip, START)


def _formula(settings: Settings, lip: str | None) -> str:
    """Return the formula of the stiffness as text, without terms that are zero; at curvature 0 if lip is None."""
    decay = " + weight_decay" if settings.weight_decay else ""
    pull = " + 1 / gamma" if settings.pull else ""
    product = "lr / gamma" if lip is None else f"lr * ({lip}{decay}{pull})" if decay or pull else f"lr * {lip}"
    return product + (" + the step of x" if settings.slow_rate else "")


def _below(value: float) -> str:
    """Return a slightly smaller number, with two digits."""
    return f"{0.95 * value:.2g}"  # rounding adds less than 5 %
