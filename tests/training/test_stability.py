"""The largest curvature against exact Hessians; the bounds against what the rules themselves do on quadratics."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    CosineScheduleConfig,
    LangevinConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    ScheduleConfig,
    SgdConfig,
    TrainerConfig,
)
from burgersgd.losses import LOSSES
from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import Mlp
from burgersgd.models.wrapped import Wrapped
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import Problem, split
from burgersgd.training.stability import (
    Settings,
    divergence_hint,
    lr_gamma_warning,
    lr_gamma_warnings,
    settings_at,
    settings_over,
    stability_hint,
    top_eigenvalue,
)
from tests.conftest import small_config
from tests.optimizers.driver import coefficients

generator = torch.Generator().manual_seed(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ the eigenvalue


def exact(problem: Problem, x: Tensor) -> float:
    def loss(x: Tensor) -> Tensor:
        outputs = problem.model.apply(split(x, problem.model.shapes), problem.inputs, False, None)
        return problem.loss.mean(outputs, problem.targets)

    hessian = torch.autograd.functional.hessian(loss, x)
    assert isinstance(hessian, Tensor)
    return float(torch.linalg.eigvalsh(hessian).abs().max())


def classes(n: int, k: int) -> Tensor:
    return torch.randint(k, (n,), generator=generator)


def problems() -> dict[str, Problem]:
    own = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    cross_entropy, squared = LOSSES["cross_entropy"], LOSSES["squared_error"]
    return {
        "mlp": Problem(Mlp((3, 5, 4), "tanh", dropout=0.3), cross_entropy, normal(40, 3), classes(40, 4)),
        "mlp in bfloat16": Problem(Mlp((3, 5, 4), "gelu"), cross_entropy, normal(40, 3), classes(40, 4), True),
        "regression": Problem(Mlp((2, 6, 1), "softplus"), squared, normal(30, 2), normal(30, 1)),
        "user's module": Problem(Wrapped(own), cross_entropy, normal(50, 3), classes(50, 2)),
    }


@pytest.mark.parametrize("name", problems())
def test_power_iteration_finds_the_largest_eigenvalue_of_the_exact_hessian(name: str) -> None:
    problem = problems()[name]
    x = normal(problem.d)
    truth = exact(problem, x)
    few, many = top_eigenvalue(problem, x, n_iterations=3), top_eigenvalue(problem, x, n_iterations=600)
    assert many == pytest.approx(truth, rel=1e-6)
    assert 0.3 * truth < few <= truth * (1 + 1e-9)
    assert top_eigenvalue(problem, x, n_iterations=3) == few


def test_the_curvature_of_a_convolutional_network() -> None:
    model = LeNet((1, 12, 12), 3, dropout=0.5)
    problem = Problem(model, LOSSES["cross_entropy"], normal(6, 1, 12, 12), classes(6, 3))
    x = model.init_std().double() * normal(problem.d)
    lip = top_eigenvalue(problem, x, n_iterations=60)
    leaf = x.clone().requires_grad_()
    outputs = model.apply(split(leaf, model.shapes), problem.inputs, False, None)
    (g,) = torch.autograd.grad(problem.loss.mean(outputs, problem.targets), leaf, create_graph=True)

    def quotient(v: Tensor) -> Tensor:  # Lanczos by hand: the Krylov space of v, orthogonalised, as an oracle
        basis = [v / v.norm()]
        for _ in range(25):
            (w,) = torch.autograd.grad(g, leaf, basis[-1], retain_graph=True)
            for _ in range(2):
                for b in basis:
                    w = w - (w @ b) * b
            basis.append(w / w.norm())
        q = torch.stack(basis)
        hq = torch.stack([torch.autograd.grad(g, leaf, b, retain_graph=True)[0] for b in basis])
        return torch.linalg.eigvalsh(q @ hq.T).abs().max()

    assert lip == pytest.approx(float(quotient(normal(problem.d))), rel=1e-3)


def quadratic(curvatures: Tensor) -> Problem:
    """F(x) = sum of a_i x_i^2 / 2, as a linear network with squared error and one example of zero target."""
    n = len(curvatures)
    module = nn.Linear(n, 1, bias=False).double()
    inputs = torch.diag(torch.sqrt(n * curvatures / 2))  # the mean of n examples (x_i sqrt(n a_i / 2))^2
    return Problem(Wrapped(module), LOSSES["squared_error"], inputs, torch.zeros(n, 1, dtype=torch.float64))


def test_on_a_quadratic_the_curvature_is_the_same_everywhere() -> None:
    problem = quadratic(torch.tensor([0.3, 7.0, 2.0, 1.5], dtype=torch.float64))
    for x in (torch.zeros(4, dtype=torch.float64), 100 * normal(4)):
        assert top_eigenvalue(problem, x) == pytest.approx(7, rel=1e-9)


def test_only_the_given_number_of_examples_is_looked_at_evenly() -> None:
    curvatures = torch.tensor([1.0, 50.0, 2.0, 60.0, 3.0, 70.0, 4.0], dtype=torch.float64)
    assert top_eigenvalue(quadratic(curvatures), normal(7), n_examples=3) == pytest.approx(60 * 7 / 3)  # 0, 3 and 6


class Kinked(torch.autograd.Function):
    """Twice x, without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * g


class KinkedNet(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Kinked.apply(super().forward(input))  # pyright: ignore[reportReturnType]


def test_what_cannot_be_measured_is_nan_and_what_is_linear_has_no_curvature() -> None:
    problem = problems()["regression"]
    assert math.isnan(top_eigenvalue(problem, torch.full((problem.d,), 1e300, dtype=torch.float64)))
    without = Problem(Wrapped(KinkedNet(2, 1).double()), LOSSES["squared_error"], problem.inputs, problem.targets)
    assert math.isnan(top_eigenvalue(without, normal(3)))
    flat = dataclasses.replace(quadratic(torch.zeros(3, dtype=torch.float64)))
    assert top_eigenvalue(flat, normal(3)) == 0


# ------------------------------------------------------------------------------------------------------ the bounds


def growth(config: OptimizerConfig, curvature: float) -> float:
    """Return by how much a cycle of the rule multiplies its state on curvature x^2 / 2: its spectral radius.

    The rule is linear there: its matrix is what it makes of states with a 1 in one place.
    """
    rule: Any = dataclasses.replace(config, **dict.fromkeys(config.hyper().keys() & {"nu", "temperature"}, 0.0)).rule()
    cycle = rule.gradients_per_cycle
    first = rule.init(torch.zeros(1, 1, dtype=torch.float64), None)
    kept = [name for name, field in zip(first._fields, first, strict=True) if field is not None]
    unit = torch.eye(len(kept), dtype=torch.float64)
    hyper = {name: [value] * len(kept) for name, value in config.hyper().items()}
    zero = torch.zeros(len(kept), 1, dtype=torch.float64)
    state = rule.init(zero, None)._replace(**{name: unit[:, [i]] for i, name in enumerate(kept)})
    rows = coefficients(rule, hyper, zero, cycle)
    for c in rows:
        grad = curvature * rule.gradient_at(c, state)
        state = rule.step(c, state, grad, grad.abs(), None)
    state = rule.end_cycle(rows[-1], state)
    matrix = torch.cat([getattr(state, name) for name in kept], dim=1)
    return float(torch.linalg.eigvals(matrix).abs().max())


LONG = {"inner_steps": 30, "outer_step": 0.6}  # cycles long enough for y to show whether it is stable

CASES: dict[str, OptimizerConfig] = {
    "sgd": SgdConfig(lr=0.3),
    "sgd, weight decay": SgdConfig(lr=0.3, weight_decay=0.7),
    "sgd, momentum": SgdConfig(lr=0.3, momentum=0.6),
    "sgd, nesterov": SgdConfig(lr=0.3, momentum=0.6, nesterov=True),
    "langevin": LangevinConfig(lr=0.3, weight_decay=0.4),
    "local_entropy": LocalEntropyConfig(lr=0.3, gamma=0.8, **LONG),
    "local_entropy, burn-in": LocalEntropyConfig(lr=0.3, gamma=0.8, burn_in=10, averaging="ema", **LONG),
    "local_entropy, reset": LocalEntropyConfig(lr=0.3, gamma=0.8, inner_start="reset", averaging="last", **LONG),
    "local_entropy, weight decay": LocalEntropyConfig(lr=0.3, gamma=0.8, weight_decay=0.9, **LONG),
    "local_entropy, momentum": LocalEntropyConfig(lr=0.3, gamma=0.8, momentum=0.7, **LONG),
    "local_entropy, nesterov": LocalEntropyConfig(lr=0.3, gamma=0.8, momentum=0.7, nesterov=True, nu=0, **LONG),
    "local_entropy, one step is sgd": LocalEntropyConfig(lr=0.3, gamma=0.8, inner_steps=1),
    "local_entropy, one step": LocalEntropyConfig(lr=0.3, gamma=0.8, inner_steps=1, outer_step=0.3),
    "local_entropy, one step of ema": LocalEntropyConfig(lr=0.3, gamma=0.8, inner_steps=1, averaging="ema"),
    "local_entropy, one step and reset": LocalEntropyConfig(lr=0.3, gamma=0.8, inner_steps=1, inner_start="reset"),
    "paper_sde": PaperSDEConfig(lr=0.3, gamma=0.8, epsilon=0.4),
    "paper_literal, period 1": PaperLiteralConfig(lr=0.3, gamma=0.8, period=1),
}


def fleet_of(
    optimizers: list[OptimizerConfig], schedule: ScheduleConfig | None = None, budget: int = 400, **changes: Any
) -> Fleet:
    trainer = TrainerConfig(budget=budget, batch_size=30, precision="float64", compile="off")
    schedule = schedule or ScheduleConfig()
    return prepare(
        [small_config(optimizer=o, schedule=schedule, trainer=trainer, **changes) for o in optimizers]
    ).fleet()


def settings_of(config: OptimizerConfig) -> Settings:
    settings = settings_at(fleet_of([config]), 0)
    assert settings is not None
    return settings[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("curvature", [2.3, 11.0])
def test_rules_are_stable_below_the_bound_and_not_above(case: str, curvature: float) -> None:
    config, settings = CASES[case], settings_of(CASES[case])

    def at(fraction: float) -> float:
        """Return the growth at the smallest lr that reaches that fraction of the bound."""
        lr, stiffness = 1e-3, 0.0
        while stiffness < fraction * settings.bound:
            lr *= 1.001
            stiffness = settings._replace(lr=lr, slow_rate=settings.slow_rate / settings.lr * lr).stiffness(curvature)
        return growth(dataclasses.replace(config, lr=lr), curvature)

    assert at(0.98) < 1 < at(1.02)


def test_the_bound_of_momentum_is_that_of_the_rule_and_not_two() -> None:
    assert settings_of(SgdConfig(lr=1, momentum=0.5)).bound == 3
    assert settings_of(SgdConfig(lr=1, momentum=0.5, nesterov=True)).bound == 1.5
    assert growth(SgdConfig(lr=2.9, momentum=0.5), 1) < 1 < growth(SgdConfig(lr=1.6, momentum=0.5, nesterov=True), 1)


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        (LocalEntropyConfig(lr=1.9, gamma=1.0), False),
        (LocalEntropyConfig(lr=2.1, gamma=1.0), True),
        (LocalEntropyConfig(lr=2.1, gamma=1.0, momentum=0.1), False),
        (LocalEntropyConfig(lr=2.1, gamma=1.0, momentum=0.1, nesterov=True, nu=0), True),
        (LocalEntropyConfig(lr=2.1, gamma=math.inf), False),
        (LocalEntropyConfig(lr=2.1, gamma=1.0, inner_steps=1), False),
        (LocalEntropyConfig(lr=2.2, gamma=1.0, inner_steps=1, outer_step=0.2), False),
        (LocalEntropyConfig(lr=2.3, gamma=1.0, inner_steps=1, outer_step=0.2), True),
        (LocalEntropyConfig(lr=2.3, gamma=1.0, inner_steps=1, averaging="ema"), False),
        (LocalEntropyConfig(lr=2.4, gamma=1.0, inner_steps=1, averaging="ema"), True),
        (LocalEntropyConfig(lr=2.1, gamma=1.0, inner_steps=1, inner_start="reset", outer_step=0.9), False),
        (LocalEntropyConfig(lr=2.1, gamma=1.0, inner_steps=20, inner_start="reset", averaging="last"), True),
        (PaperSDEConfig(lr=1.7, gamma=1.0, epsilon=0.1), False),
        (PaperSDEConfig(lr=1.7, gamma=1.0, epsilon=0.3), True),
        (PaperLiteralConfig(lr=1.1, gamma=1.0, period=1), True),
        (PaperLiteralConfig(lr=1.1, gamma=1.0, period=20), False),
        (PaperLiteralConfig(lr=2.1, gamma=1.0), True),
        (SgdConfig(lr=1e6), False),
        (AdamWConfig(lr=1e6), False),
    ],
)
def test_the_warning_comes_where_the_pull_alone_makes_the_rule_unstable(config: OptimizerConfig, warns: bool) -> None:
    (warning,) = lr_gamma_warnings(fleet_of([config]))
    assert (warning is not None) == warns
    reset = getattr(config, "inner_start", "warm") == "reset"  # where curvature 0 sends y nowhere
    if not isinstance(config, AdamWConfig | PaperLiteralConfig) and not reset:  # nonlinear; moves x at some steps only
        assert (growth(config, 0) > 1 + 1e-9) == warns  # x = y is an eigenvector of 1


def test_the_warning_says_what_to_try() -> None:
    (warning,) = lr_gamma_warnings(fleet_of([LocalEntropyConfig(lr=2.5, gamma=1.0)]))
    assert warning == (
        "lr / gamma reaches 2.5 >= 2: every step moves y further away from x; "
        "try optimizer.lr < 1.9 or a larger optimizer.gamma (gamma_min with gamma_scoping)"
    )
    assert growth(LocalEntropyConfig(lr=1.9, gamma=1.0), 0) < 1 + 1e-9


def scoped(**changes: Any) -> LocalEntropyConfig:
    return LocalEntropyConfig(**({"lr": 0.5, "gamma": 2.0, "inner_steps": 4, "gamma_scoping": 0.05} | changes))


@pytest.mark.parametrize(
    ("budget", "config", "schedule", "warns"),
    [
        (40, scoped(), None, False),  # gamma falls to 2 / 1.05^9 = 1.3
        (400, scoped(), None, True),  # to 2 / 1.05^99 = 0.016
        (400, scoped(gamma_min=0.3), None, False),
        (400, scoped(), CosineScheduleConfig(warmup=0.1), False),  # lr falls faster
        (400, scoped(lr=0.6), CosineScheduleConfig(warmup=0.1), True),  # 2.35 in the middle
        (400, scoped(lr=4.5, gamma=2.0, gamma_scoping=0.0), CosineScheduleConfig(warmup=0.1), True),
        (40_000, scoped(gamma_scoping=9.0), None, True),  # gamma is 0 in float64
    ],
)
def test_the_whole_budget_counts(
    budget: int, config: LocalEntropyConfig, schedule: ScheduleConfig | None, warns: bool
) -> None:
    (warning,) = lr_gamma_warnings(fleet_of([config], schedule, budget))
    assert (warning is not None) == warns
    assert not warns or ("optimizer.lr <" in str(warning)) == (budget != 40_000)


def test_runs_of_a_fleet_are_warned_one_by_one() -> None:
    warnings = lr_gamma_warnings(fleet_of([LocalEntropyConfig(lr=lr, gamma=0.5) for lr in (0.4, 1.2, 0.6)]))
    assert [w is not None for w in warnings] == [False, True, False]
    (together, alone) = warnings[1], lr_gamma_warning(Settings(lr=1.2, pull=2.0), lr=1.2)
    assert together == alone


# ------------------------------------------------------------------------------------------------------- the hint


def test_the_hint_says_which_bound_is_broken_and_what_keeps_it() -> None:
    settings = Settings(lr=0.29, pull=0.8)
    assert stability_hint(settings, 17.4) == (
        "lr * (L + 1 / gamma) = 5.28 >= 2 with L = 17.4 (largest Hessian eigenvalue where the validation error was "
        "lowest): try optimizer.lr < 0.1"
    )
    assert Settings(lr=0.1, pull=0.8).stiffness(17.4) < 2
    assert stability_hint(Settings(lr=0.1, momentum=0.5, weight_decay=0.1), 50).startswith(
        "lr * (L + weight_decay) = 5.01 >= 3 with L = 50 "
    )
    assert stability_hint(Settings(lr=0.1, pull=30.0), 2.0).endswith(", or a larger optimizer.gamma")
    assert stability_hint(Settings(lr=0.1), 2.0) == (
        "lr * L = 0.2 < 2 with L = 2 (largest Hessian eigenvalue where the validation error was lowest): "
        "the step is stable there; try trainer.clip_norm=1, and check the scale of the data"
    )
    assert "could not be measured" in stability_hint(settings, math.nan)


@pytest.mark.parametrize("case", ["sgd, momentum", "local_entropy, nesterov", "paper_sde"])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_the_lr_that_is_suggested_is_stable(case: str, scale: float) -> None:
    config = dataclasses.replace(CASES[case], lr=3 / scale, **({"gamma": 0.8 / scale} if "sgd" not in case else {}))
    hint = stability_hint(settings_of(config), 5.0 * scale)
    suggested = float(hint.partition("optimizer.lr < ")[2].partition(",")[0])
    assert growth(config, 5.0 * scale) > 1 > growth(dataclasses.replace(config, lr=suggested), 5.0 * scale)


def test_a_diverged_run_reports_its_own_bound_without_evaluating_its_siblings() -> None:
    relu = MlpConfig(depth=2, width=12)
    fleet = fleet_of([SgdConfig(lr=lr) for lr in (0.05, 1e100)], model=relu, budget=20)
    start = fleet.x.clone()
    fleet.advance(20)
    assert fleet.alive.tolist() == [True, False]
    hint = divergence_hint(fleet, 1, int(fleet.diverged_at[1]), start[1])
    lip = top_eigenvalue(fleet.problem, start[1])
    assert hint.startswith("lr * L = ")
    assert float(hint.split()[4]) == pytest.approx(1e100 * lip, rel=1e-2)
    suggested = float(hint.partition("optimizer.lr < ")[2])
    assert 0 < suggested * lip < 2


def test_a_schedule_counts_at_the_step_that_diverged() -> None:
    relu = MlpConfig(depth=2, width=12)
    optimizer = LocalEntropyConfig(lr=1e100, gamma=0.7, nu=0, inner_steps=2, outer_step=0.5)
    fleet = fleet_of([optimizer], CosineScheduleConfig(warmup=0.5), budget=20, model=relu)
    start = fleet.x[0].clone()
    fleet.advance(20)
    step = int(fleet.diverged_at[0])
    assert 0 <= step < 10
    hint = divergence_hint(fleet, 0, int(fleet.diverged_at[0]), start)
    assert hint.startswith("lr * (L + 1 / gamma) = ")
    expected = 1e100 * (step + 1) / 10 * (top_eigenvalue(fleet.problem, start) + 1 / 0.7)
    assert float(hint.split()[8]) == pytest.approx(expected, rel=1e-2)


def test_adamw_has_no_such_bound() -> None:
    fleet = fleet_of([AdamWConfig()])
    assert settings_at(fleet, 0) is None
    assert divergence_hint(fleet, 0, int(fleet.diverged_at[0]), fleet.x[0]).startswith(
        "no bound on lr is known for this optimizer"
    )


def test_settings_at_many_evaluations_are_those_at_each_of_them() -> None:
    configs: list[OptimizerConfig] = [
        LocalEntropyConfig(lr=lr, gamma=0.5, gamma_scoping=0.01, gamma_min=0.1) for lr in (0.4, 1.2, 0.6)
    ]
    fleet = fleet_of(configs, CosineScheduleConfig(), 200)
    evaluations = [0, 3, 50, 199]
    assert settings_over(fleet, evaluations) == [settings_at(fleet, evaluation) for evaluation in evaluations]
    assert len({settings[1] for settings in settings_over(fleet, evaluations)}) == 4
    assert settings_over(fleet_of([AdamWConfig()]), evaluations) == []
