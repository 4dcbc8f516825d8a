"""The C gradient against torch autograd, and a run against itself in other fleets."""

from itertools import pairwise

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.nn import functional as F

from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import MlpConfig
from burgersgd.native import library
from burgersgd.training.gradients import split
from burgersgd.training.native_gradient import Images, NativeGradient, images_of

pytestmark = pytest.mark.skipif(library("mlp_gradient") is None, reason="the C kernel could not be compiled")

N = 131
WIDTHS = [[5, 7, 3], [64, 64, 64, 10], [17, 1], [3, 33, 1], [4, 6], [32, 48], [784, 300, 10], [2, 1, 130, 67, 5]]
LOSSES = ["cross_entropy", "squared_error", "logistic"]
ACTIVATIONS = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}
BATCHES = [1, 5, 32, 127]
CASES = [
    (widths, activation, loss, batch)
    for i, widths in enumerate(WIDTHS)
    for j, activation in enumerate(ACTIVATIONS)
    for k, loss in enumerate(LOSSES)
    if loss != "logistic" or widths[-1] == 1
    for batch in (BATCHES if widths[0] < 784 else BATCHES[(i + j + k) % 4 :][:1])
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def make_data(widths: list[int], loss: str, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, widths[0], generator=generator, dtype=dtype)
    if loss == "cross_entropy":
        return inputs, torch.randint(0, widths[-1], (N,), generator=generator)
    if loss == "squared_error":
        return inputs, torch.randn(N, widths[-1], generator=generator, dtype=dtype)
    return inputs, torch.randn(N, generator=generator, dtype=dtype).sign()


def make_params(widths: list[int], runs: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    layers = pairwise(widths)
    parts = [
        torch.randn(runs, n, generator=generator, dtype=dtype) * scale
        for n_in, n_out in layers
        for n, scale in ((n_in * n_out, 1.5 / n_in**0.5), (n_out, 0.5))
    ]
    return torch.cat(parts, dim=1)


def oracle(
    widths: list[int], activation: str, loss: str, params: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one run by autograd, written as (2.2)-(2.4)."""
    x = params.clone().requires_grad_()
    z, start = inputs, 0
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        weight = x[start : start + n_in * n_out].view(n_out, n_in)
        start += n_in * n_out
        z = z @ weight.T + x[start : start + n_out]
        start += n_out
        if i < len(widths) - 2:
            z = ACTIVATIONS[activation](z)
    assert start == len(x)
    if loss == "cross_entropy":
        value = F.cross_entropy(z, targets)
    elif loss == "squared_error":
        value = (z - targets).square().sum(dim=1).mean()
    else:
        value = F.softplus(-targets * z[:, 0], threshold=100).mean()
    return value.detach(), torch.autograd.grad(value, x)[0]


def outputs_like(params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs that show whether every number was written."""
    runs = len(params)
    return (
        torch.full_like(params, float("nan")),
        params.new_full((runs,), float("nan")),
        params.new_full((runs,), float("nan")),
    )


def make_indices(runs: int, batch: int, seed: int = 2) -> Tensor:
    """With replacement: a batch of 127 out of 131 surely holds an example twice."""
    return torch.randint(0, N, (runs, batch), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("widths", "activation", "loss", "batch"), CASES)
def test_equals_autograd(widths: list[int], activation: str, loss: str, batch: int, dtype: torch.dtype) -> None:
    inputs, targets = make_data(widths, loss, dtype)
    params, indices = make_params(widths, 1, dtype), make_indices(1, batch)
    grad, value, norm = outputs_like(params)
    NativeGradient(widths, activation, loss, inputs, targets, 1, 127)(params, indices, grad, value, norm)
    rows = indices[0]
    expected_value, expected = oracle(widths, activation, loss, params[0], inputs[rows], targets[rows])
    tolerance = TOLERANCE[dtype]
    assert (grad[0] - expected).norm() <= tolerance * expected.norm()
    assert abs(value[0] - expected_value) <= tolerance * abs(expected_value)
    assert abs(norm[0] - grad[0].double().norm()) <= tolerance * norm[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_outputs_neither_overflow_nor_lose_the_gradient(activation: str) -> None:
    for loss, widths in (("cross_entropy", [6, 20, 20]), ("logistic", [6, 20, 1])):
        inputs, targets = make_data(widths, loss, torch.float32)
        params, indices = 30 * make_params(widths, 1, torch.float32), make_indices(1, 64)
        grad, value, norm = outputs_like(params)
        NativeGradient(widths, activation, loss, inputs, targets, 1, 64)(params, indices, grad, value, norm)
        rows = indices[0]
        data = (inputs[rows].double(), targets[rows] if loss == "cross_entropy" else targets[rows].double())
        expected_value, expected = oracle(widths, activation, loss, params[0].double(), *data)
        assert (grad[0] - expected).norm() <= 2e-5 * expected.norm()  # outputs in the hundreds, rounded to 1e-5
        assert abs(value[0] - expected_value) <= 2e-5 * abs(expected_value)


def test_tanh_and_its_derivative_are_accurate_everywhere() -> None:
    """One weight per layer: the output is tanh(x) and the loss (output - 0)^2."""
    for dtype, tolerance in ((torch.float32, 4e-7), (torch.float64, 1e-14)):  # relative; float32 resolution is 1.2e-7
        points = torch.cat([torch.linspace(-12, 12, 999), torch.logspace(-7, 0, 99), torch.tensor([0.0])]).to(dtype)
        kernel = NativeGradient([1, 1, 1], "tanh", "squared_error", points[:, None], points[:, None] * 0, 1, 1)
        params = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=dtype)
        grad, value, norm = outputs_like(params)
        for i, x in enumerate(points.double()):
            kernel(params, torch.tensor([[i]]), grad, value, norm)
            output = grad[0, 3].double() / 2  # d loss / d b_2 = 2 tanh(x)
            assert abs(output - x.tanh()) <= tolerance * x.tanh().abs()
            slope = 2 * output * (1 - output.square())  # d loss / d b_1
            assert abs(grad[0, 1] - slope) <= tolerance * 2 * output.abs()


def test_softmax_is_accurate_down_to_vanishing_probabilities() -> None:
    """Outputs (x, 0), class 1: d loss / d b_1 is the probability e^x / (1 + e^x)."""
    for dtype, lowest, tolerance in ((torch.float32, -80, 4e-7), (torch.float64, -700, 1e-14)):
        points = torch.cat([torch.linspace(lowest, 0, 999), -torch.logspace(-7, 1, 99)]).to(dtype)
        targets = torch.ones(len(points), dtype=torch.int64)
        kernel = NativeGradient([1, 2], "relu", "cross_entropy", points[:, None], targets, 1, 1)
        params = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype)
        grad, value, norm = outputs_like(params)
        for i, x in enumerate(points.double()):
            kernel(params, torch.tensor([[i]]), grad, value, norm)
            assert abs(grad[0, 2] - x.sigmoid()) <= tolerance * x.sigmoid()


def test_relu_has_slope_zero_at_zero() -> None:
    widths = [2, 3, 1]
    inputs, targets = torch.zeros(4, 2), torch.ones(4, 1)
    params = make_params(widths, 1, torch.float32)
    params[0, 6:9] = 0  # b_1: every hidden unit sits at the kink
    grad, value, norm = outputs_like(params)
    NativeGradient(widths, "relu", "squared_error", inputs, targets, 1, 4)(
        params, torch.arange(4)[None], grad, value, norm
    )
    assert (grad[0, :9] == 0).all()
    assert grad[0, -1] != 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("runs", [3, 17])
@pytest.mark.parametrize("widths", [[5, 7, 3], [64, 64, 64, 10]])
def test_a_run_does_not_depend_on_other_runs_or_the_threads(widths: list[int], runs: int, dtype: torch.dtype) -> None:
    inputs, targets = make_data(widths, "cross_entropy", dtype)
    wide = torch.zeros(runs, 3 + 2 * make_params(widths, 1, dtype).shape[1], dtype=dtype)
    params = wide[:, 3 : 3 + wide.shape[1] // 2 - 1]  # rows of a larger tensor, at odd addresses
    params.copy_(make_params(widths, runs, dtype))
    indices = make_indices(runs, 37)
    results = []
    for threads in (1, 2, 5, None):
        outputs = outputs_like(params)
        NativeGradient(widths, "tanh", "cross_entropy", inputs, targets, runs, 127, threads)(params, indices, *outputs)
        results.append(outputs)
    alone = NativeGradient(widths, "tanh", "cross_entropy", inputs, targets, 1, 64)
    single = [outputs_like(params[:1]) for _ in range(runs)]
    for r in range(runs):
        alone(params[r : r + 1].clone(), indices[r : r + 1].clone(), *single[r])
    results.append(tuple(torch.cat(parts) for parts in zip(*single, strict=True)))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.isfinite(mine).all()
            assert torch.equal(mine, theirs)


def test_batches_of_any_size_up_to_the_maximum() -> None:
    """What a long batch leaves in the workspace is not seen by the short one after it."""
    widths = [7, 19, 10]
    inputs, targets = make_data(widths, "cross_entropy", torch.float64)
    params = make_params(widths, 1, torch.float64)
    kernel = NativeGradient(widths, "relu", "cross_entropy", inputs, targets, 1, 64)
    grad, value, norm = outputs_like(params)
    for batch in (64, 3, 17, 1, 64):
        indices = make_indices(1, batch, seed=batch)
        kernel(params, indices, grad, value, norm)
        rows = indices[0]
        expected_value, expected = oracle(widths, "relu", "cross_entropy", params[0], inputs[rows], targets[rows])
        assert (grad[0] - expected).norm() <= 1e-12 * expected.norm()
        assert abs(value[0] - expected_value) <= 1e-12 * expected_value


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_non_finite_numbers_reach_the_loss_or_the_norm(
    activation: str, loss: str, bad: float, dtype: torch.dtype
) -> None:
    widths = [5, 20, 1 if loss == "logistic" else 3]
    inputs, targets = make_data(widths, loss, dtype)
    indices = torch.arange(64)[None]
    healthy = make_params(widths, 1, dtype)
    spoiled_inputs = inputs.clone()
    spoiled_inputs[10, 2] = bad
    cases = [(healthy, spoiled_inputs)]
    for place in range(0, healthy.shape[1], 6):  # hits both weight matrices and both biases
        spoiled = healthy.clone()
        spoiled[0, place] = bad
        cases.append((spoiled, inputs))
    for params, data in cases:
        kernel = NativeGradient(widths, activation, loss, data, targets, 1, 64)
        grad, value, norm = outputs_like(params)
        kernel(params, indices, grad, value, norm)
        expected_value, expected = oracle(widths, activation, loss, params[0], data[:64], targets[:64])
        survives = bool(expected_value.isfinite() and expected.isfinite().all())  # tanh(inf) = 1 forgets
        assert bool(value.isfinite() and norm.isfinite()) == survives
        assert not (survives and bad != bad), "a NaN never vanishes"
        # The workspace must not remember: the same kernel gives finite numbers for finite parameters and rows.
        kernel(healthy, indices[:, 11:], grad, value, norm)
        assert all(bool(output.isfinite().all()) for output in (grad, value, norm))


def test_a_diverged_run_leaves_the_others_alone() -> None:
    widths = [64, 64, 64, 10]
    inputs, targets = make_data(widths, "cross_entropy", torch.float32)
    params, indices = make_params(widths, 3, torch.float32), make_indices(3, 32)
    kernel = NativeGradient(widths, "relu", "cross_entropy", inputs, targets, 3, 32, 1)
    healthy, spoiled = outputs_like(params), outputs_like(params)
    kernel(params, indices, *healthy)
    broken = params.clone()
    broken[1] = float("nan")
    kernel(broken, indices, *spoiled)
    for mine, theirs in zip(healthy, spoiled, strict=True):
        assert torch.equal(mine[[0, 2]], theirs[[0, 2]])
    assert spoiled[1][1].isnan()
    assert spoiled[2][1].isnan()


@pytest.mark.parametrize(
    ("widths", "activation", "loss", "dtype"),
    [
        ([5, 3], "sigmoid", "cross_entropy", torch.float32),
        ([5, 3], "relu", "hinge", torch.float32),
        ([5, 3], "relu", "logistic", torch.float32),
        ([5, 3], "relu", "cross_entropy", torch.bfloat16),
        ([5], "relu", "cross_entropy", torch.float32),
        ([5, 0, 3], "relu", "cross_entropy", torch.float32),
        ([3] * 18, "relu", "cross_entropy", torch.float32),
    ],
)
def test_unsupported_combinations_are_refused(
    widths: list[int], activation: str, loss: str, dtype: torch.dtype
) -> None:
    assert not NativeGradient.supports(widths, activation, loss, dtype)
    with pytest.raises(ValueError, match="not supported"):
        NativeGradient(widths, activation, loss, torch.zeros(4, 5, dtype=dtype), torch.zeros(4), 1, 4)


def test_supports_what_it_should() -> None:
    for activation in ACTIVATIONS:
        for dtype in TOLERANCE:
            assert NativeGradient.supports([3] * 17, activation, "cross_entropy", dtype)
            assert NativeGradient.supports([3, 1], activation, "logistic", dtype)


def refused(name: str) -> pytest.RaisesExc[Exception]:
    """By the shapes in the annotations where they are checked, else by hand."""
    return pytest.raises((ValueError, TypeCheckError), match=f"{name} is|parameter '{name}'")


def test_wrong_data_are_refused_at_construction() -> None:
    inputs, targets = make_data([5, 3], "cross_entropy", torch.float32)
    arguments = ([5, 3], "relu", "cross_entropy")
    with refused("inputs"):
        NativeGradient(*arguments, inputs[:, :4], targets, 1, 8)
    with refused("targets"):
        NativeGradient(*arguments, inputs, targets.int(), 1, 8)
    with pytest.raises(ValueError, match="classes 0 to 2"):
        NativeGradient(*arguments, inputs, targets + 1, 1, 8)
    with pytest.raises(ValueError, match="n_runs=0"):
        NativeGradient(*arguments, inputs, targets, 0, 8)
    with pytest.raises(ValueError, match="threads=0"):
        NativeGradient(*arguments, inputs, targets, 1, 8, 0)


def test_wrong_arguments_are_refused_at_the_call() -> None:
    widths = [5, 3]
    inputs, targets = make_data(widths, "cross_entropy", torch.float32)
    params = make_params(widths, 2, torch.float32)
    kernel = NativeGradient(widths, "relu", "cross_entropy", inputs, targets, 2, 8)
    grad, value, norm = outputs_like(params)
    indices = make_indices(2, 8)
    with pytest.raises(IndexError, match="131"):
        kernel(params, torch.full((2, 8), N), grad, value, norm)
    with pytest.raises(IndexError, match="131"):
        kernel(params, torch.full((2, 8), -1), grad, value, norm)
    assert grad.isnan().all()
    with pytest.raises(ValueError, match="batch=9"):
        kernel(params, make_indices(2, 9), grad, value, norm)
    with pytest.raises(ValueError, match="batch=0"):
        kernel(params, make_indices(2, 0), grad, value, norm)
    with refused("indices"):
        kernel(params, make_indices(3, 8), grad, value, norm)
    with refused("indices"):
        kernel(params, make_indices(8, 2).T, grad, value, norm)
    with refused("params"):
        kernel(params.double(), indices, grad, value, norm)
    with refused("grad"):
        kernel(params, indices, grad[:, :-1], value, norm)
    with refused("norm"):
        kernel(params, indices, grad, value, norm.double())


def test_worthwhile_where_dispatch_outweighs_the_arithmetic() -> None:
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 64):
            torch.set_num_threads(n)
            assert NativeGradient.worthwhile([64, 64, 64, 10], 32)
            assert NativeGradient.worthwhile([64, 64, 64, 10], 128)
            assert not NativeGradient.worthwhile([784, 2048, 2048, 10], 32)
            assert NativeGradient.worthwhile([784, 512, 512, 10], 128) == (n <= 2)
            assert NativeGradient.worthwhile([784, 512, 512, 10], 128, n_runs=64)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------- convolutions and teams

LENETS = [((1, 28, 28), 10), ((3, 32, 32), 7), ((1, 12, 12), 10), ((1, 16, 20), 3), ((2, 13, 31), 2)]


def lenet_case(shape: tuple[int, ...], n_out: int, loss: str, dtype: torch.dtype) -> tuple[LeNet, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(N, *shape, generator=generator, dtype=dtype)
    _, targets = make_data([1, n_out], loss, dtype)
    return LeNet(shape, n_out), inputs, targets


def lenet_params(model: LeNet, runs: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(2, runs, len(model.init_std()), generator=generator, dtype=dtype)
    return z[0] * model.init_std().to(dtype) + 0.1 * z[1]


def lenet_oracle(model: LeNet, loss: str, params: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    x = params.clone().requires_grad_()
    outputs = model.apply(split(x, model.shapes), inputs, True, None)
    value = F.cross_entropy(outputs, targets) if loss == "cross_entropy" else (outputs - targets).square().sum(1).mean()
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(("shape", "n_out"), LENETS)
def test_lenet_equals_autograd(shape: tuple[int, ...], n_out: int, loss: str, dtype: torch.dtype) -> None:
    model, inputs, targets = lenet_case(shape, n_out, loss, dtype)
    for batch, runs in ((1, 1), (13, 3)):
        params = lenet_params(model, runs, dtype)
        indices = torch.stack(
            [torch.randperm(N, generator=torch.Generator().manual_seed(r))[:batch] for r in range(runs)]
        )
        grad, value, norm = outputs_like(params)
        NativeGradient.of(model, loss, inputs, targets, runs, 16)(params, indices, grad, value, norm)
        for r in range(runs):
            expected, expected_grad = lenet_oracle(model, loss, params[r], inputs[indices[r]], targets[indices[r]])
            torch.testing.assert_close(value[r], expected, rtol=10 * TOLERANCE[dtype], atol=0)
            scale = float(expected_grad.norm())
            assert float((grad[r] - expected_grad).norm()) < TOLERANCE[dtype] * scale
            assert abs(float(norm[r]) - scale) < TOLERANCE[dtype] * scale


@pytest.mark.parametrize(("channels", "side", "padding"), [(1, 28, 2), (3, 32, 0), (2, 20, 2)])
def test_sizes_of_lenet_are_those_of_its_layers(channels: int, side: int, padding: int) -> None:
    first, second = nn.Conv2d(channels, 6, 5, padding=padding), nn.Conv2d(6, 16, 5)
    a = first(torch.zeros(1, channels, side, side))
    b = second(nn.functional.max_pool2d(a, 2))
    images = Images(channels, side, side, padding)
    assert images.work == a.numel() * channels * 25 + b.numel() * 6 * 25
    assert images.features == nn.functional.max_pool2d(b, 2).numel()
    assert images.n_params == sum(p.numel() for layer in (first, second) for p in layer.parameters())
    assert images.pixels == channels * side * side


def test_lenet_takes_the_first_of_equal_pixels_as_torch_does() -> None:
    """Constant images: all pixels of a pool are equal, and only the first one has a gradient."""
    model = LeNet((1, 12, 12), 3)
    inputs = torch.arange(1.0, 5).view(4, 1, 1, 1).expand(4, 1, 12, 12).double().contiguous()
    targets, indices = torch.tensor([0, 1, 2, 1]), torch.tensor([[0, 1, 2, 3]])
    params = lenet_params(model, 1, torch.float64)
    grad, value, norm = outputs_like(params)
    NativeGradient.of(model, "cross_entropy", inputs, targets, 1, 4)(params, indices, grad, value, norm)
    _, expected = lenet_oracle(model, "cross_entropy", params[0], inputs, targets)
    torch.testing.assert_close(grad[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("which", ["first", "second"])
def test_lenet_hands_nan_on_to_loss_and_norm(which: str) -> None:
    model, inputs, targets = lenet_case((1, 28, 28), 10, "cross_entropy", torch.float32)
    params = lenet_params(model, 1, torch.float32)
    params[0, 3 if which == "first" else 6 * 26 + 77] = float("nan")
    grad, value, norm = outputs_like(params)
    NativeGradient.of(model, "cross_entropy", inputs, targets, 1, 8)(params, torch.arange(8)[None], grad, value, norm)
    assert value.isnan().all()
    assert norm.isnan().all()


def test_lenet_is_evaluated_as_torch_does() -> None:
    model, inputs, labels = lenet_case((3, 32, 32), 7, "cross_entropy", torch.float64)
    params = lenet_params(model, 2, torch.float64)
    loss, wrong = NativeGradient.of(model, "cross_entropy", inputs, labels, 2, 50).evaluate(params, labels)
    for r in range(2):
        outputs = model.apply(split(params[r], model.shapes), inputs, False, None)
        torch.testing.assert_close(loss[r], F.cross_entropy(outputs, labels, reduction="sum"), rtol=1e-11, atol=0)
        assert int(wrong[r]) == int((outputs.argmax(1) != labels).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("team", [2, 3, 7])
def test_threads_that_share_a_run_do_not_change_its_bits(team: int, dtype: torch.dtype) -> None:
    widths, batch = [100, 300, 130, 10], 65
    inputs, targets = make_data(widths, "cross_entropy", dtype)
    params, indices = make_params(widths, 1, dtype), torch.arange(batch)[None]
    outcomes = []
    for threads in (1, team):
        outputs = outputs_like(params)
        kernel = NativeGradient(widths, "tanh", "cross_entropy", inputs, targets, 1, batch, threads)
        assert kernel.team == threads
        kernel(params, indices, *outputs)
        outcomes.append((*outputs, *kernel.evaluate(params, targets)))
    for alone, shared in zip(*outcomes, strict=True):
        assert torch.equal(alone, shared)


def test_small_runs_and_runs_for_every_thread_are_not_shared() -> None:
    widths, small = [100, 300, 130, 10], [64, 64, 64, 10]
    inputs, targets = make_data(widths, "cross_entropy", torch.float32)
    assert NativeGradient(widths, "relu", "cross_entropy", inputs, targets, 2, 64, 2).team == 1
    inputs, targets = make_data(small, "cross_entropy", torch.float32)
    assert NativeGradient(small, "relu", "cross_entropy", inputs, targets, 1, 128, 2).team == 1


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("images", [False, True], ids=["mlp", "lenet"])
def test_threads_that_share_an_evaluation_do_not_change_its_bits(images: bool, runs: int) -> None:
    if images:
        model, inputs, labels = lenet_case((3, 32, 32), 7, "cross_entropy", torch.float32)
        params, at_once = lenet_params(model, runs, torch.float32), 9
    else:
        model, widths, at_once = MlpConfig(depth=2, width=300).network((100,), 10), [100, 300, 300, 10], 17
        inputs, labels = make_data(widths, "cross_entropy", torch.float32)
        params = make_params(widths, runs, torch.float32)
    outcomes = []
    for threads in (1, 2, 5):
        kernel = NativeGradient(
            model.widths,
            model.activation,
            "cross_entropy",
            inputs.flatten(1),
            labels,
            runs,
            at_once,
            threads,
            images_of(model),
            evaluates=True,
        )
        assert kernel.threads == threads
        outcomes.append(kernel.evaluate(params, labels))
    for loss, wrong in outcomes[1:]:
        assert torch.equal(loss, outcomes[0][0])
        assert torch.equal(wrong, outcomes[0][1])
    whole = NativeGradient.of(model, "cross_entropy", inputs, labels, runs, len(labels)).evaluate(params, labels)
    torch.testing.assert_close(outcomes[0][0], whole[0], rtol=1e-6, atol=0)
    assert torch.equal(outcomes[0][1], whole[1])
