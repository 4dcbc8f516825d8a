"""Random streams against oracles (Philox in plain Python, Box-Muller in float64 numpy), and their properties."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from burgersgd import native, streams
from burgersgd.streams import Backend, Purpose, integers, normal_, permutation, uniform_

NOISE = Purpose.NOISE
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 20_260_101]
NATIVE = native.library("normals") is not None
BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="no C compiler here")),
    "torch",
    pytest.param(
        "triton",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


def seeds_for(backend: Backend | None, seeds: list[int]) -> Tensor:
    return torch.tensor(seeds, device="cuda" if backend == "triton" else "cpu")


def normals(
    shape: tuple[int, int, int],
    first_step: int = 0,
    purpose: int = NOISE,
    seeds: list[int] | None = None,
    backend: Backend | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    on = seeds_for(backend, list(range(shape[1])) if seeds is None else seeds)
    return normal_(torch.empty(shape, dtype=dtype, device=on.device), on, purpose, first_step, backend=backend)


# Oracles ------------------------------------------------------------------------------------------------------


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, word by word."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def words_of(seed: int, purpose: int, step: int, n: int) -> list[int]:
    key = [seed % 2**32, seed % 2**64 >> 32]
    return [
        word for b in range(math.ceil(n / 4)) for word in philox4x32_10([b, step % 2**32, step >> 32, purpose], key)
    ][:n]


def box_muller(words: np.ndarray) -> np.ndarray:
    """The docstring of burgersgd.streams, one number after the other; len(words) is a multiple of 32."""
    z = np.empty(len(words))
    for p in range(len(words) // 2):
        a, b = words[2 * p], words[2 * p + 1]
        v = np.float32((float(np.float32(a)) + 0.5) / 2**32)
        r = math.sqrt(-2 * math.log(v))
        z[32 * (p // 16) + p % 16] = r * math.cos(2 * math.pi * b / 2**32)
        z[32 * (p // 16) + 16 + p % 16] = r * math.sin(2 * math.pi * b / 2**32)
    return z


KNOWN_ANSWERS = [  # Random123, kat_vectors: counter, key, output
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_oracle_gives_the_published_known_answers(counter: list[int], key: list[int], output: list[int]) -> None:
    assert philox4x32_10(counter, key) == output


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_integers_are_the_published_known_answers(
    counter: list[int], key: list[int], output: list[int], backend: Backend
) -> None:
    block, low, high, purpose = counter
    seed = seeds_for(backend, [int(np.uint64(key[0] | key[1] << 32).astype(np.int64))])
    words = integers(seed, purpose, low | high << 32, 1, 4, first_block=block, backend=backend)
    assert words.flatten().tolist() == output


# Definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 7, 32, 101])
@pytest.mark.parametrize("first_step", [0, 2**32 - 1, 2**63 - 1])
def test_streams_follow_their_definition(n: int, first_step: int, backend: Backend) -> None:
    on = seeds_for(backend, SEEDS)
    longer = 32 * math.ceil(n / 32)
    words = np.array([[words_of(s, NOISE, first_step + k, longer) for s in SEEDS] for k in range(2)])
    drawn = integers(on, NOISE, first_step, 2, n, backend=backend)
    uniform = uniform_(torch.empty(2, len(SEEDS), n, device=on.device), on, NOISE, first_step, backend=backend)
    normal = normals((2, len(SEEDS), n), first_step, seeds=SEEDS, backend=backend)
    np.testing.assert_array_equal(drawn.cpu(), words[..., :n])
    np.testing.assert_array_equal(uniform.cpu(), (words[..., :n] // 256) / 2**24)
    oracle = np.apply_along_axis(box_muller, -1, words)[..., :n]
    np.testing.assert_allclose(normal.cpu(), oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_agree_between_backends(backend: Backend) -> None:
    drawn = normals((3, 2, 100_003), backend=backend).cpu()
    np.testing.assert_allclose(drawn, normals((3, 2, 100_003), backend="torch"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_normals_are_the_float32_ones_widened(backend: Backend) -> None:
    wide = normals((2, 3, 77), backend=backend, dtype=torch.float64)
    assert torch.equal(wide, normals((2, 3, 77), backend=backend).double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("first_block", "pair", "a", "radius"),  # found by searching the stream of seed 0
    [(2253935952, 6, 0, math.sqrt(66 * math.log(2))), (858997400, 0, 2**32 - 1, 0.0)],
)
def test_extreme_words_make_finite_normals(
    first_block: int, pair: int, a: int, radius: float, backend: Backend
) -> None:
    seed = seeds_for(backend, [0])
    assert integers(seed, NOISE, 0, 1, 32, first_block=first_block)[0, 0, 2 * pair] == a
    out = torch.empty(1, 1, 32, device=seed.device)
    streams._fill(out, streams._Kind.NORMALS, seed, NOISE, 0, first_block, backend)
    assert math.hypot(out[0, 0, pair], out[0, 0, pair + 16]) == pytest.approx(radius, rel=1e-6, abs=0)


def test_triton_kernel_in_the_interpreter_gives_the_same_numbers() -> None:
    pytest.importorskip("triton")
    code = """
import torch
from burgersgd import streams, streams_triton
seeds = torch.tensor([0, -1, 2**62])
for n, first_step, first_block in [(5, 1, 0), (1100, 2**64 - 2, 2**32 - 3)]:
    for kind, dtype in enumerate([torch.int64, torch.float32, torch.float32, torch.float64]):
        here, there = torch.empty(2, 2, 3, n, dtype=dtype)
        streams_triton.fill(here, kind, seeds, 2**32 - 1, first_step, first_block)
        streams._torch_fill(there, streams._Kind(kind), seeds, 2**32 - 1, first_step, first_block)
        assert torch.equal(here, there) if kind < 2 else (here - there).abs().max() < 1e-6, (n, kind)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)


# A run does not depend on its company -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draw_does_not_depend_on_other_runs_steps_per_call_or_length(backend: Backend) -> None:
    whole = normals((4, 5, 1000), 7, backend=backend)
    for step in range(4):
        for run in range(5):
            alone = normals((1, 1, 1000), 7 + step, seeds=[run], backend=backend)
            assert torch.equal(alone[0, 0], whole[step, run])
    for d in (1, 31, 33, 999):
        assert torch.equal(normals((4, 5, d), 7, backend=backend), whole[..., :d])


def test_a_draw_does_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            drawn.append(normals((3, 5, 10_007)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_a_draw_does_not_depend_on_alignment_and_stays_inside(offset: int) -> None:
    buffer = torch.full((2 * 3 * 45 + 16,), 9.0)
    inside = slice(offset, offset + 2 * 3 * 45)
    normal_(buffer[inside].view(2, 3, 45), torch.arange(3), NOISE, 4)
    assert torch.equal(buffer[inside].view(2, 3, 45), normals((2, 3, 45), 4))
    assert (buffer == 9.0).sum() == 16


# Statistics: n fixed beforehand, one look, z-scores against exact variances -----------------------------------


@pytest.mark.parametrize(("power", "mean", "variance"), [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)])
def test_moments_are_those_of_the_standard_normal(power: int, mean: int, variance: int) -> None:
    z = normals((1, 4, 2**20), dtype=torch.float64)
    score = ((z**power).mean().item() - mean) / math.sqrt(variance / z.numel())
    assert abs(score) < 4


def test_normals_and_uniforms_pass_kolmogorov_smirnov() -> None:
    z = normals((1, 1, 2**18)).flatten().numpy()
    u = uniform_(torch.empty(1, 1, 2**18), torch.tensor([0]), Purpose.DROPOUT, 0).flatten().numpy()
    for sample, distribution in ((z[0::2], "norm"), (z[1::2], "norm"), (u, "uniform")):
        assert scipy.stats.kstest(sample, distribution).pvalue > 1e-3
    assert u.min() >= 0
    assert u.max() < 1


@pytest.mark.skipif(not NATIVE, reason="2^25 numbers take too long without C")
def test_tails_have_the_right_weight() -> None:
    n = 2**25
    largest = 0.0
    counts = np.zeros(3)
    for step in range(8):
        z = normals((1, 1, n // 8), step).abs()
        counts += [(z > limit).sum().item() for limit in (3, 4, 5)]
        largest = max(largest, z.max().item())
    expected = n * 2 * scipy.stats.norm.sf([3, 4, 5])
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))  # counts of rare events are Poisson
    assert 5 < largest < math.sqrt(66 * math.log(2))


def test_streams_of_neighbouring_seeds_steps_and_purposes_are_uncorrelated() -> None:
    seeds = [*range(8), -1, -2, *(2**k for k in (3, 16, 31, 32, 48, 62))]
    n = 2**14
    z = torch.cat([normals((4, len(seeds), n), 0, purpose, seeds).flatten(0, 1) for purpose in Purpose]).double()
    for values in (z, (z**2 - 1) / math.sqrt(2)):
        products = values @ values.T / math.sqrt(n)
        scores = products[*torch.triu_indices(len(z), len(z), 1)]
        assert len(scores) == 384 * 383 // 2
        assert scores.abs().max() < 6  # 73,536 looks: 2e-4 by chance for the normal; the squares have heavier tails
        assert abs((scores**2).mean().item() - 1) < 5 * math.sqrt(2 / len(scores))


def test_numbers_within_a_stream_are_uncorrelated() -> None:
    z = normals((1, 1, 2**20), dtype=torch.float64).flatten()
    for values in (z, (z**2 - 1) / math.sqrt(2)):
        for lag in (1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64):  # 16: cosine and sine of the same pair
            score = (values[:-lag] * values[lag:]).sum().item() / math.sqrt(len(values) - lag)
            assert abs(score) < 4.5, lag


# Permutations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutation_orders_63_bit_keys(backend: Backend) -> None:
    drawn = permutation(seeds_for(backend, SEEDS), 5, 100, backend=backend)
    for seed, order in zip(SEEDS, drawn.tolist(), strict=True):
        words = words_of(seed, Purpose.BATCHES, 5, 200)
        assert order == sorted(range(100), key=lambda i, w=words: (w[2 * i] // 2, w[2 * i + 1]))


def test_permutation_compares_the_second_word_after_the_first_and_keeps_ties_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = torch.tensor([0, 5, 1, 3, 0, 3, 2, 2**32 - 1, 3, 0, 0, 3, 0, 2**32 - 1])  # the lowest bit is dropped
    monkeypatch.setattr(streams, "integers", lambda *_, **__: words[None, None])
    assert permutation(torch.tensor([0]), 0, 7, backend="torch").tolist() == [[1, 2, 5, 0, 6, 4, 3]]


def test_permutations_are_uniform_and_differ_between_epochs_and_runs() -> None:
    orders = permutation(torch.arange(24_000), 0, 4)
    counts = np.bincount(orders.numpy() @ [64, 16, 4, 1], minlength=256)
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    many = torch.cat([permutation(torch.arange(3), epoch, 50) for epoch in range(3)])
    assert len({tuple(order) for order in many.tolist()}) == 9


@pytest.mark.parametrize("n", [2, 33, 1079, 70_000])
def test_orders_in_c_are_those_of_a_sort_with_any_number_of_threads(n: int) -> None:
    seeds = torch.tensor([3, -8, 2**62])
    expected = streams.permutations(seeds, 2**40, 2, n, purpose=7, backend="torch")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(streams.permutations(seeds, 2**40, 2, n, purpose=7), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1])
def test_permutation_of_almost_nothing(n: int) -> None:
    assert permutation(torch.arange(2), 0, n).tolist() == [[0] * n] * 2


def test_apples_gpus_get_the_numbers_of_the_cpu() -> None:
    out = torch.empty(2, 3, 100)  # there is no such device here: the way there is tested
    streams._backend(None, "mps")(out, streams._Kind.NORMALS, torch.arange(3), NOISE, 7, 0)
    assert torch.equal(out, normals((2, 3, 100), first_step=7))


# Errors and fallback ------------------------------------------------------------------------------------------


def test_purposes_keep_their_numbers() -> None:
    numbers = {"INIT": 0, "BATCHES": 1, "NOISE": 2, "DROPOUT": 3, "STABILITY": 4, "AUGMENT": 5}
    assert {p.name: p.value for p in Purpose} == numbers


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("out must be contiguous", {"out": torch.empty(2, 3, 8)[..., ::2]}),
        ("out must be float32 or float64", {"out": torch.empty(2, 3, 4, dtype=torch.float16)}),
        ("seeds must be int64, contiguous", {"seeds": torch.arange(6)[::2]}),
        ("seeds must be on the device of out", {"seeds": torch.empty(3, dtype=torch.int64, device="meta")}),
        ("steps must lie in", {"first_step": -1}),
        ("steps must lie in", {"first_step": 2**64 - 1}),
        ("purpose and first_block must lie in", {"purpose": -1}),
        ("'triton' does not work here", {"backend": "triton"}),
    ],
)
def test_wrong_arguments_are_named(message: str, change: dict[str, object]) -> None:
    arguments = {"out": torch.empty(2, 3, 4), "seeds": torch.arange(3), "purpose": NOISE, "first_step": 0}
    with pytest.raises(ValueError, match=message):
        normal_(**(arguments | change))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget which backends work, before and after."""
    caches = (native.compiled, native._warn_unavailable, streams._backend)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("reason", "environment"),
    [("BURGERSGD_NATIVE=0", {"BURGERSGD_NATIVE": "0"}), ("no C compiler", {"PATH": "", "CC": ""})],
)
def test_without_a_compiler_torch_draws_the_same_numbers_and_says_so_once(
    reason: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "burgersgd"):
        first, second = normals((2, 3, 100)), normals((2, 3, 100))
    assert [reason in record.message for record in caplog.records] == [True]
    assert torch.equal(first, normals((2, 3, 100), backend="torch"))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="'native' does not work here"):
        normals((1, 1, 4), backend="native")
