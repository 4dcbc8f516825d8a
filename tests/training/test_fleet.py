"""A run does not depend on other runs, blocks, logging or the engine; divergence freezes only the diverged run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    CosineScheduleConfig,
    DeviceConfig,
    DigitsConfig,
    GdConfig,
    LangevinConfig,
    LeNetConfig,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    OptimizerConfig,
    PaperSDEConfig,
    SamConfig,
    SgdConfig,
    TeacherStudentConfig,
    TrainConfig,
    TrainerConfig,
    TwoSpiralsConfig,
)
from burgersgd.datasets import Dataset, Part
from burgersgd.native import library
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import eager_gradient, functional_gradient, split
from burgersgd.training.state import limit_after
from tests.conftest import small_config

RELU = MlpConfig(depth=2, width=12)  # whose outputs overflow where tanh would only saturate


def fleet_of(configs: Sequence[TrainConfig], **arguments: Any) -> Fleet:
    return prepare(configs, **arguments).fleet()


def family(n: int, engine: str = "off", budget: int = 200) -> list[TrainConfig]:
    """n runs that differ in seed and in every float hyperparameter that matters."""
    return [
        small_config(
            seed=3 * i,
            optimizer=LocalEntropyConfig(
                lr=0.05 + 0.01 * i,
                nu=1e-5 * (1 + i),
                gamma=0.4 + 0.1 * i,
                inner_steps=5,
                burn_in=3,
                outer_step=0.7,
                momentum=0.3,
            ),
            schedule=CosineScheduleConfig(final=0.1 + 0.02 * i, warmup=0.05),
            trainer=TrainerConfig(budget=budget, batch_size=30, precision="float64", compile=engine),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("engine", ["off", "native"])
@pytest.mark.parametrize("company", [3, 17])
def test_a_run_is_the_same_alone_and_in_a_fleet(engine: str, company: int) -> None:
    configs = family(company, engine)
    alone, together = fleet_of([configs[2]]), fleet_of(configs)
    assert torch.equal(alone.x[0], together.x[2])
    assert torch.equal(alone.batches.indices(37, 90)[:, 0], together.batches.indices(37, 90)[:, 2])
    noise, shared = alone.inputs.normals(11, 5), together.inputs.normals(11, 5)
    assert noise is not None
    assert shared is not None
    assert torch.equal(noise[:, 0], shared[:, 2])
    for fleet in (alone, together):
        fleet.advance(200)
    difference = (alone.x[0] - together.x[2]).norm() / alone.x[0].norm()
    assert difference < 1e-10  # batched kernels may reduce in another order
    if engine == "native":
        assert torch.equal(alone.x[0], together.x[2])


def test_the_test_of_runs_in_fleets_can_fail() -> None:
    configs = family(3)
    other = dataclasses.replace(configs[2], seed=configs[2].seed + 1)
    a, b = fleet_of([configs[2]]), fleet_of([other])
    for fleet in (a, b):
        fleet.advance(200)
    assert (a.x - b.x).norm() / a.x.norm() > 1e-3


@pytest.mark.parametrize("engine", ["off", "native"])
def test_how_the_budget_is_cut_does_not_matter(engine: str) -> None:
    whole, cut = fleet_of(family(2, engine)), fleet_of(family(2, engine))
    whole.advance(200)
    for n in (1, 7, 56, 64, 3, 69):
        cut.advance(n)
    assert torch.equal(whole.x, cut.x)
    assert torch.equal(whole.runs.loss_sum, cut.runs.loss_sum)


@pytest.mark.parametrize("n_runs", [1, 3])
def test_native_engine_computes_what_autograd_computes(n_runs: int) -> None:
    eager, native = fleet_of(family(n_runs)), fleet_of(family(n_runs, "native"))
    assert (eager.engine, native.engine) == ("eager", "native")
    for fleet in (eager, native):
        fleet.advance(200)
    assert torch.allclose(eager.x, native.x, rtol=1e-9, atol=1e-11)


COMPILED = [
    LocalEntropyConfig(nu=1e-5, inner_steps=3, burn_in=1, integrator="leimkuhler_matthews"),
    LocalEntropyConfig(nu=1e-5, inner_steps=3, burn_in=1, momentum=0.5),
    SgdConfig(momentum=0.9, nesterov=True, weight_decay=1e-3),
]


@pytest.mark.parametrize(
    ("n_runs", "optimizer"),
    [
        (3, COMPILED[0]),
        (1, COMPILED[2]),
        *(pytest.param(n, COMPILED[k], marks=pytest.mark.slow) for n, k in ((1, 0), (1, 1), (3, 1), (3, 2))),
    ],
)
def test_compiled_steps_equal_eager_steps(n_runs: int, optimizer: OptimizerConfig) -> None:
    fleets = []
    for engine in ("off", "on"):
        trainer = TrainerConfig(budget=40, batch_size=500, precision="float64", compile=engine, clip_norm=0.8)
        fleets.append(fleet_of([small_config(seed=s, optimizer=optimizer, trainer=trainer) for s in range(n_runs)]))
        fleets[-1].advance(13)  # 1079 examples: every third batch is short
        fleets[-1].advance(11)
    eager, compiled = fleets
    assert compiled.engine == "compiled"
    assert torch.allclose(eager.x, compiled.x, rtol=1e-9, atol=1e-12)
    assert torch.allclose(eager.runs.loss_sum, compiled.runs.loss_sum, rtol=1e-9)
    assert torch.allclose(eager.grad_norm, compiled.grad_norm, rtol=1e-9)


def test_compiled_steps_freeze_a_diverging_run_alone() -> None:
    def trainer(engine: str) -> TrainerConfig:
        return TrainerConfig(budget=12, batch_size=1079, precision="float64", compile=engine)

    rates = (0.1, 1e160)
    configs = [small_config(seed=4, model=RELU, optimizer=SgdConfig(lr=lr), trainer=trainer("on")) for lr in rates]
    fleet = fleet_of(configs)
    fleet.advance(12)
    alone = fleet_of([small_config(seed=4, model=RELU, optimizer=SgdConfig(lr=0.1), trainer=trainer("off"))])
    alone.advance(12)
    assert fleet.alive.tolist() == [True, False]
    assert fleet.diverged_at[0] == -1
    assert 0 < fleet.diverged_at[1] < 12
    assert torch.allclose(fleet.x[0], alone.x[0], rtol=1e-10)
    assert torch.isfinite(fleet.last_loss).all()


@pytest.mark.parametrize("engine", ["off", "native"])
def test_a_non_finite_run_is_frozen_in_that_very_step_and_siblings_are_untouched(engine: str) -> None:
    def config(lr: float, seed: int) -> TrainConfig:
        trainer = TrainerConfig(budget=30, batch_size=64, precision="float64", compile=engine)
        return small_config(seed=seed, model=RELU, optimizer=SgdConfig(lr=lr), trainer=trainer)

    bad, good = config(1e160, 1), config(0.1, 2)
    fleet, alone, single = fleet_of([bad, good]), fleet_of([good]), fleet_of([bad])
    history: list[Tensor] = []
    for _ in range(30):
        history.append(single.x[0].clone())
        single.advance(1)
    at = int(single.diverged_at[0])
    assert 0 < at < 30
    assert torch.equal(single.x[0], history[at])  # the step that became non-finite changed nothing
    assert torch.isfinite(single.last_loss).all()
    for f in (fleet, alone):
        f.advance(30)
    assert fleet.alive.tolist() == [False, True]
    assert int(fleet.diverged_at[0]) == at
    assert torch.equal(fleet.x[0], single.x[0]) or engine == "off"
    assert torch.allclose(fleet.x[1], alone.x[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("loss", "norm"), [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_either_a_bad_loss_or_a_bad_gradient_freezes_a_run(loss: float, norm: float) -> None:
    fleet = fleet_of([small_config(seed=s, optimizer=SgdConfig()) for s in (1, 2)])
    fleet.advance(3)
    steps: Any = fleet.stepper
    before, gradient = fleet.x.clone(), steps.gradient
    bad = torch.tensor([1.0, math.nan]).double()

    def broken(*arguments: Any) -> Any:
        grads, losses, norms = gradient(*arguments)
        return grads, torch.where(bad.isnan(), loss, losses), torch.where(bad.isnan(), norm, norms)

    steps.gradient = broken
    fleet.advance(1)
    assert fleet.alive.tolist() == [True, False]
    assert fleet.diverged_at.tolist() == [-1, 3]
    assert torch.equal(fleet.x[1], before[1])
    assert not torch.equal(fleet.x[0], before[0])


OPTIMIZERS = [
    LocalEntropyConfig(inner_steps=4, nu=1e-4, averaging="ema", inner_start="reset", outer_momentum=0.4, nesterov=True),
    LocalEntropyConfig(inner_steps=3, averaging="last", nu_annealing="cosine", gamma_scoping=0.01),
    PaperSDEConfig(nu=1e-4, epsilon=0.2),
    SgdConfig(momentum=0.9, weight_decay=1e-3),
    AdamWConfig(),
    LangevinConfig(temperature=1e-4),
    GdConfig(lr=0.5),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("piece", [160, 2400])  # parts of a run (d = 1066), two runs
def test_updating_large_states_in_pieces_changes_no_bit(
    optimizer: OptimizerConfig, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        small_config(seed=s, optimizer=dataclasses.replace(optimizer, lr=optimizer.hyper()["lr"] * (1 + s)))
        for s in range(5)
    ]
    whole = fleet_of(configs)
    whole.advance(24)
    monkeypatch.setattr("burgersgd.training.engines.eager.PIECE", piece)
    pieces = fleet_of(configs)
    assert 2 * piece < pieces.x.numel()
    pieces.advance(24)
    assert torch.equal(whole.x, pieces.x)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_on_digits(optimizer: OptimizerConfig) -> None:
    trainer = TrainerConfig(budget=240, batch_size=64, compile="off")
    fleet = fleet_of([small_config(seed=1, optimizer=optimizer, trainer=trainer)])
    fleet.advance(24)
    first = float(fleet.take_mean_loss(24)[0])
    fleet.advance(192)
    fleet.take_mean_loss(192)
    fleet.advance(24)
    assert float(fleet.take_mean_loss(24)[0]) < 0.9 * first


def test_gradients_are_clipped_to_the_norm() -> None:
    trainer = TrainerConfig(budget=5, batch_size=64, precision="float64", compile="off", clip_norm=0.01)
    fleet = fleet_of([small_config(optimizer=SgdConfig(lr=0.5), trainer=trainer)])
    before = fleet.x.clone()
    fleet.advance(1)
    assert float(fleet.grad_norm[0]) > 0.01  # the norm that is reported is that of the gradient itself
    assert float((fleet.x - before).norm()) == pytest.approx(0.5 * 0.01, rel=1e-9)


def image_data(n: int = 60, side: int = 28) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def part(m: int) -> Part:
        return Part(torch.randn(m, 1, side, side, generator=generator), torch.randint(0, 3, (m,), generator=generator))

    return Dataset("images", "classification", part(n), part(12), part(12), n_outputs=3)


@pytest.mark.parametrize(
    "model", [LeNetConfig(dropout=0.3), MlpConfig(depth=3, width=9, dropout=0.4, activation="gelu")]
)
def test_fleets_with_dropout_equal_their_runs_alone(model: Any) -> None:
    trainer = TrainerConfig(budget=8, batch_size=20, precision="float64", compile="off")
    configs = [small_config(seed=s, model=model, optimizer=SgdConfig(lr=0.05), trainer=trainer) for s in (1, 2, 3)]
    together = fleet_of(configs, dataset=image_data())
    together.advance(8)
    for i, config in enumerate(configs):
        alone = fleet_of([config], dataset=image_data())
        alone.advance(8)
        assert torch.allclose(alone.x[0], together.x[i], rtol=1e-10, atol=1e-12)


def test_dropout_masks_come_from_the_runs_own_stream() -> None:
    model = MlpConfig(depth=1, width=50, dropout=0.5)
    fleet = fleet_of([small_config(seed=s, model=model) for s in (1, 2)])
    block = fleet.inputs.draw(0)
    assert block.uniform is not None
    keep = (block.uniform >= 0.5).double().mean()
    n = block.uniform.numel()
    assert abs(float(keep) - 0.5) * math.sqrt(n) / 0.5 < 6
    assert not torch.equal(block.uniform[0, 0], block.uniform[0, 1])


def test_averaged_noise_is_that_of_consecutive_steps_beyond_one_draw() -> None:
    """leimkuhler_matthews keeps the numbers of the step before, in whose memory the next ones are drawn."""
    lr, nu = 0.05, 0.03
    optimizer = LocalEntropyConfig(lr=lr, nu=nu, gamma=math.inf, inner_steps=1, integrator="leimkuhler_matthews")
    trainer = dataclasses.replace(small_config().trainer, budget=140)
    fleet = fleet_of([small_config(optimizer=optimizer, trainer=trainer)])
    assert fleet.inputs.draw_length < 140
    stepper: Any = fleet.stepper
    stepper.gradient = lambda at, indices, uniform: ([0 * at], at[:, 0] * 0, at[:, 0] * 0)  # noise alone
    start = fleet.x.clone()
    fleet.advance(140)
    numbers = torch.empty(141, 1, fleet.d, dtype=torch.float64)
    xi = streams.normal_(numbers, fleet.seeds, streams.Purpose.NOISE, 0)
    expected = start + math.sqrt(4 * nu * lr) * ((xi[:-1] + xi[1:]) / 2).sum(0)
    torch.testing.assert_close(fleet.x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("runs", "width", "dropout", "optimizer", "steps"),
    [
        (1, 12, 0.0, LocalEntropyConfig(nu=1e-5), 64),  # 1,066 numbers a step
        (3, 60, 0.0, LocalEntropyConfig(nu=1e-5), 4),  # 24,510
        (40, 60, 0.0, LocalEntropyConfig(nu=1e-5), 1),  # 326,800
        (2, 60, 0.3, SgdConfig(), 16),  # 7,200: two layers of 60, for every example of a batch of 30
        (2, 60, 0.3, LocalEntropyConfig(nu=1e-5), 4),  # both
    ],
)
def test_random_numbers_of_as_many_steps_are_drawn_as_fit_in_half_a_mebibyte(
    runs: int, width: int, dropout: float, optimizer: OptimizerConfig, steps: int
) -> None:
    model = MlpConfig(depth=2, width=width, dropout=dropout)
    trainer = TrainerConfig(budget=40, batch_size=30, precision="float32", compile="off")
    fleet = fleet_of([small_config(s, model=model, optimizer=optimizer, trainer=trainer) for s in range(runs)])
    fleet.advance(1)
    numbers = [drawn for drawn in (fleet.inputs.draws.xi, fleet.inputs.draws.uniform) if drawn is not None]
    assert [len(drawn) for drawn in numbers] == [steps] * (1 + (dropout > 0 and optimizer.rule().noisy))
    size = sum(drawn.numel() * 4 for drawn in numbers)
    assert size <= 1 << 19 or steps == 1
    assert 2 * size > 1 << 19 or steps == 64


def test_a_first_loss_below_one_does_not_lower_the_largest_loss() -> None:
    limit = limit_after(torch.tensor([1e-3, 5.0, 3e38]), 10.0)
    assert limit.tolist() == [10.0, 50.0, torch.finfo(torch.float32).max]


def test_every_step_has_a_dropout_mask_of_its_own() -> None:
    model = MlpConfig(depth=1, width=20, dropout=0.5)
    fleet = fleet_of([small_config(seed=9, model=model, optimizer=SgdConfig(lr=0.4))])
    x, seeds = fleet.x.clone(), fleet.seeds
    fleet.advance(5)
    for k in range(5):
        uniform = streams.uniform_(torch.empty(1, 1, 30 * 20), seeds, streams.Purpose.DROPOUT, k).view(1, 30, 20)
        gradient, _ = eager_gradient(fleet.problem, x, fleet.batches.indices(k, 1)[0], uniform)
        x = x - 0.4 * gradient
    torch.testing.assert_close(fleet.x, x, rtol=1e-12, atol=1e-14)


def test_every_draw_of_dropout_numbers_is_that_of_its_steps() -> None:
    fleet = fleet_of([small_config(seed=9, model=MlpConfig(depth=1, width=200, dropout=0.5))])
    n = fleet.inputs.draw_length
    assert n > 1
    for first in (0, n, 5 * n):
        draws = fleet.inputs.draw(first)
        expected = streams.uniform_(torch.empty(n, 1, 30 * 200), fleet.seeds, streams.Purpose.DROPOUT, first)
        assert draws.uniform is not None
        assert torch.equal(draws.uniform.flatten(2), expected)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_initial_weights_come_from_the_runs_own_stream(distribution: str) -> None:
    seeds = torch.tensor([3, 11])
    model = MlpConfig(width=12, init_distribution=distribution, init_scale=0.7)
    prepared = prepare([small_config(seed=int(s), model=model) for s in seeds])
    fleet = prepared.fleet()
    z = torch.empty(1, 2, fleet.d)
    if distribution == "normal":
        streams.normal_(z, seeds, streams.Purpose.INIT, 0)
    else:
        z = (2 * streams.uniform_(z, seeds, streams.Purpose.INIT, 0) - 1) * math.sqrt(3)
    weights = z[0, :, : 64 * 12] * 0.7 * math.sqrt(2 / 64)
    assert torch.allclose(fleet.x[:, : 64 * 12].float(), weights, rtol=1e-6)
    assert not torch.equal(fleet.x[0], fleet.x[1])
    assert (fleet.x[:, 64 * 12 : 65 * 12] == 0).all()


def test_autograd_on_leaf_views_equals_torch_func() -> None:
    problem = prepare([small_config(model=MlpConfig(depth=2, width=7, activation="silu"))]).problem
    at = torch.randn(1, problem.d, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    indices = torch.arange(40)[None]
    grad, loss = eager_gradient(problem, at, indices, None)
    other, same = functional_gradient(problem, at, indices, None)
    assert torch.allclose(grad, other, rtol=1e-12)
    assert torch.allclose(loss, same, rtol=1e-12)
    module = problem.model.module().double()
    nn.utils.vector_to_parameters(at[0], module.parameters())
    mean = nn.functional.cross_entropy(module(problem.inputs[:40]), problem.targets[:40])
    mean.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
    assert torch.allclose(grad[0], expected, rtol=1e-10, atol=1e-14)
    assert float(loss[0]) == pytest.approx(float(mean.detach()), rel=1e-12)


def test_split_gives_views_of_the_vector() -> None:
    x = torch.arange(10.0)
    a, b = split(x, [(2, 3), (4,)])
    assert a.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert b.tolist() == [6, 7, 8, 9]
    assert a.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("loss", "dataset"),
    [("squared_error", DigitsConfig()), ("logistic", TwoSpiralsConfig()), ("squared_error", TeacherStudentConfig())],
)
@pytest.mark.parametrize("engine", ["off", "native"])
def test_other_losses_train(loss: str, dataset: Any, engine: str) -> None:
    config = small_config(
        dataset=dataset,
        loss=LossConfig(name=loss),
        optimizer=SgdConfig(lr=0.05),
        trainer=TrainerConfig(budget=300, batch_size=50, precision="float64", compile=engine),
    )
    fleet = fleet_of([config])
    fleet.advance(20)
    first = float(fleet.take_mean_loss(20)[0])
    fleet.advance(260)
    fleet.take_mean_loss(260)
    fleet.advance(20)
    assert float(fleet.take_mean_loss(20)[0]) < 0.95 * first


def test_bfloat16_networks_keep_a_float32_state() -> None:
    fleets = [
        fleet_of([small_config(optimizer=SgdConfig(), trainer=TrainerConfig(budget=20, precision=p, compile="off"))])
        for p in ("float32", "bfloat16")
    ]
    for fleet in fleets:
        fleet.advance(20)
        assert fleet.x.dtype == torch.float32
    difference = (fleets[0].x - fleets[1].x).norm() / fleets[0].x.norm()
    assert 1e-5 < difference < 0.05  # bfloat16 has 8 bits


@pytest.mark.parametrize("optimizer", [SamConfig(lr=0.1, rho=0.3), LocalEntropyConfig(inner_steps=3)])
def test_dropout_masks_are_held_as_long_as_the_batch_in_every_draw(optimizer: OptimizerConfig) -> None:
    fleet = fleet_of([small_config(seed=9, model=MlpConfig(depth=1, width=200, dropout=0.5), optimizer=optimizer)])
    n, held = fleet.inputs.draw_length, fleet.rule.gradients_per_batch
    for first in (0, n, 5 * n + 1):
        drawn = fleet.inputs.draw(first).uniform
        assert drawn is not None
        for i in range(n):
            own = torch.empty(1, 1, 30 * 200)
            streams.uniform_(own, fleet.seeds, streams.Purpose.DROPOUT, (first + i) // held)
            assert torch.equal(drawn[i].flatten(), own.flatten())


@pytest.mark.parametrize("change", ["longer", "single", "none"])
def test_a_snapshot_of_another_state_is_refused(change: str) -> None:
    fleet = fleet_of([small_config(optimizer=LocalEntropyConfig(inner_steps=3)) for _ in range(2)])
    snapshots = [fleet.snapshot(i) for i in range(2)]
    fleet.restore(snapshots)
    y = snapshots[1]["state"]["y"]
    snapshots[1]["state"]["y"] = {"longer": torch.cat([y, y]), "single": y.float(), "none": None}[change]
    message = {
        "longer": rf"y of the snapshot is torch.float64 \[{2 * fleet.d}\], the state differs",
        "single": rf"y of the snapshot is torch.float32 \[{fleet.d}\], the state differs",
        "none": "the state has a y, the snapshot differs",
    }[change]
    with pytest.raises(ValueError, match=f"^{message}$"):
        fleet.restore(snapshots)


def test_beyond_the_budget_is_an_error() -> None:
    fleet = fleet_of([small_config()])
    with pytest.raises(ValueError, match="n=41: only 40 gradient evaluations"):
        fleet.advance(41)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("engine", ["off", "on"])
@pytest.mark.parametrize("n_runs", [1, 3])
def test_cuda_trajectories_equal_the_cpus_in_float64(engine: str, n_runs: int) -> None:
    from burgersgd.config import DeviceConfig

    configs = family(n_runs, engine)
    cpu = fleet_of([dataclasses.replace(c, device=DeviceConfig(name="cpu")) for c in family(n_runs)])
    cuda = fleet_of([dataclasses.replace(c, device=DeviceConfig(name="cuda")) for c in configs])
    for fleet in (cpu, cuda):
        fleet.advance(200)
    # The normal numbers of the two devices agree to 1e-6, and the noise has scale sqrt(4 nu lr) < 0.01.
    assert torch.allclose(cpu.x, cuda.x.cpu(), rtol=1e-5, atol=1e-6)
    assert cuda.alive.all()


@pytest.mark.skipif(library("mlp_gradient") is None, reason="the C kernel could not be compiled")
@pytest.mark.parametrize("n_runs", [1, 3])
def test_lenet_is_computed_in_c_and_equals_autograd(n_runs: int) -> None:
    generator = torch.Generator().manual_seed(5)
    inputs, labels = torch.randn(90, 1, 28, 28, generator=generator), torch.randint(10, (90,), generator=generator)
    train, validation, test = (Part(inputs[i : i + 30], labels[i : i + 30]) for i in (0, 30, 60))
    data = Dataset("images", "classification", train, validation, test, 10)
    fleets = []
    for compile in ("auto", "off"):
        configs = [
            TrainConfig(
                model=LeNetConfig(),
                optimizer=LocalEntropyConfig(lr=0.01 * (1 + s), nu=1e-5, gamma=0.7, inner_steps=4, outer_step=0.8),
                trainer=TrainerConfig(budget=12, batch_size=8, precision="float64", compile=compile),
                device=DeviceConfig(name="cpu"),
                seed=s,
            )
            for s in range(n_runs)
        ]
        prepared = prepare(configs, dataset=data)
        assert prepared.engine == ("native" if compile == "auto" else "eager")
        fleet = prepared.fleet()
        fleet.advance(12)
        fleets.append((fleet, prepared.evaluator(prepared.data.validation)(fleet.x)))
    (native, measured), (eager, expected) = fleets
    torch.testing.assert_close(native.x, eager.x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(measured[0], expected[0], rtol=1e-10, atol=0)
    assert torch.equal(measured[1], expected[1])
