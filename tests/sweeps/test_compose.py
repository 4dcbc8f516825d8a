"""Fast composition gives what Hydra's own gives, whatever kind of override."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from burgersgd.config import CONF_DIR, ConfigError, SgdConfig
from burgersgd.copies import plain_values
from burgersgd.sweeps.compose import WHOLE_NUMBER, Composer, as_config_error, one_line, split_words

KINDS = [
    [],
    ["optimizer=sgd"],
    ["optimizer.nu=3e-6", "optimizer=local_entropy", "seed=7"],  # a key before its group
    ["optimizer=adamw", "optimizer.beta1=0.5", "schedule=cosine", "schedule.final=0.25"],
    ["optimizer=sgd", "optimizer=langevin", "optimizer.temperature=0.5"],  # the last choice wins
    ["seed=1", "seed=2"],
    ["model.widths=[8,4]", "model.activation=tanh"],
    ["model.width=7", "model={width:5,depth:1}", "model.depth=3"],  # a dictionary is no choice of a group
    ["trainer.budget=null", "trainer.drop_last=true"],
    ["optimizer.gamma=inf"],
    ["++optimizer.lr=0.25", "run_name='with space, comma and = sign'"],
    ["dataset=npz", "dataset.path=a/b.npz"],
    ["output_root=${dataset.name}/x", "dataset=mnist1d"],
    ["loss=squared_error", "device=cpu", "device.threads=3"],
    ["optimizer.lr=float(1)", "seed=int(3.0)", "run_name=str(5)"],
]


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.mark.parametrize("words", KINDS, ids=" ".join)
def test_a_job_is_composed_as_hydra_composes_it(words: list[str], composer: Composer) -> None:
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        expected = compose("train", overrides=words)
    for _ in range(2):  # from a fresh base, and from the kept one
        node = composer.node(words)
        assert node == expected
        assert OmegaConf.get_type(node, "optimizer") is OmegaConf.get_type(expected, "optimizer")
        assert OmegaConf.is_struct(node)
    assert composer.config(words) == OmegaConf.to_object(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["~optimizer.nu"], ""),
        (["~optimizer"], ""),
        (["+optimizer=sgd"], ""),
        (["+optimizer.lr=0.5"], "+optimizer.lr=0.5"),
        (["optimizer@other=sgd"], ""),
        (["nothing@here=3"], ""),
        (["++optimizer.unknown=[1,2]"], "optimizer.unknown=[1, 2]: no such key"),
        (["optimizer=foo"], "optimizer=foo: must be one of adamw, asam, gd, langevin, local_entropy"),
        (["optimizer.nu=abc"], "optimizer.nu=abc: must be of type float"),
        (["optimizer.nuu=1"], "optimizer.nuu: no such key"),
        (["optimizer=sgd", "optimizer.nu=1"], "optimizer.nu: no such key"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: must be > 0"),
        (["seed=[1"], "seed=[1: must be KEY=VALUE"),
        (["output_root=${nowhere}"], "nowhere"),
        (["dataset=npz"], "dataset.path"),
        (["+sweep.params={seed:range(3)}"], "must be quoted, such as {seed: 'range(3)'}"),
        ([f"{'a' * 300}=1"], "(keys are not that long)"),
        ([f"optimizer.{'a' * 300}=1"], "no such key"),
    ],
)
def test_what_hydra_refuses_is_refused_in_one_line(words: list[str], message: str, composer: Composer) -> None:
    with pytest.raises(ConfigError) as caught:
        composer.config(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["trainer.epochs=7", "trainer.budget=40"], "trainer.epochs=7: has no effect beside trainer.budget=40"),
        (["experiment=theory_regime", "trainer.epochs=7"], ""),
        (["model.depth=3", "model.widths=[8,4]"], "model.depth=3: has no effect beside model.widths=[8,4]"),
        (["model.widths=[8,4]", "model.width=5"], "model.width=5: has no effect beside model.widths=[8,4]"),
        (["model.widths=null", "model.width=5", "trainer.epochs=7"], ""),
        (["model={widths:[8]}", "model.width=5"], "model.width=5: has no effect beside model.widths=[8]"),
    ],
)
def test_a_key_that_another_one_replaces_is_refused(words: list[str], refused: str, composer: Composer) -> None:
    for more in ([], ["seed=3"], ["run_name=a"]):
        if refused:
            with pytest.raises(ConfigError, match=re.escape(refused)):
                composer.config([*words, *more])
        else:
            composer.config([*words, *more])


QUICK = [
    (["seed=3"], True),
    (["optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "seed=3"], True),
    (["optimizer.lr=1", "optimizer.gamma=inf", "trainer.budget=40", "schedule=cosine", "schedule.final=0.25"], True),
    (["optimizer.lr=0.5", "optimizer.lr=2"], True),
    (["optimizer.lr=auto", "optimizer.gamma=3", "seed=4"], True),
    (["sweep.name=mine", "output_root=here", "seed=4", "optimizer=sgd"], True),
    (["seed=3", "trainer.drop_last=true", "trainer.budget=null", "model.widths=[8,4]"], True),
    (["++optimizer.lr=0.5", "optimizer.gamma=3"], True),
    (["optimizer.lr=auto", "optimizer.lr=0.25"], False),
    (["optimizer.lr=0.25", "optimizer.lr=auto"], False),
    (["trainer.budget=30", "trainer={budget:50}"], False),
    (["trainer={budget:50}", "trainer.budget=30"], False),
    (["trainer={budget:50}", "optimizer.lr=0.25"], True),
    (["seed=2", "seed=null"], False),
    (["dataset.validation_fraction=0.25", "seed=2", "dataset=digits"], True),
    (["run_name=a", "run_name=5", "seed=2"], False),
    (["run_name=5"], False),  # a number for text
    (["seed=3.0"], False),  # a float for an int
    (["+optimizer.lr=0.5"], False),
    (["optimizer.lr=${seed}", "seed=2"], False),
    (["run_name=${optimizer.lr}", "optimizer.lr=0.25"], False),
    (["seed=-1"], False),
    (["seed=3", "trainer.budget=0"], False),
    (["optimizer.lr=nan"], False),
    (["optimizer.none=1"], False),
    (["none.lr=1"], False),
    (["optimizer.lr.none=1"], False),
    (["optimizer.lr@here=1"], False),
    (["dataset=npz", "seed=1"], False),  # a key without a value
    (["trainer.budget=3", "optimizer.inner_steps=5"], False),  # refused together
]


@pytest.mark.parametrize(
    ("words", "quick"), QUICK, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_numbers_are_put_into_a_copy_of_the_base_and_all_else_is_left_to_omegaconf(
    words: list[str], quick: bool, composer: Composer
) -> None:
    def either(compose_it: Callable[[], Any]) -> Any:
        try:
            config = compose_it()
        except ConfigError as error:
            return str(error)
        return config if config is None else (config, repr(plain_values(config)))  # 1 is not 1.0

    slowly = either(lambda: as_config_error(lambda: OmegaConf.to_object(composer.node(words))))
    for _ in range(2):
        assert either(lambda: composer.config(words)) == slowly
    with contextlib.suppress(ConfigError):
        assert (composer._quickly(composer.parse(words)) is not None) == quick


@pytest.mark.parametrize("word", ["seed=3", "seed=0", "a.b_1.c=-12", "trainer.budget=123456789012345678", "seed=-0"])
def test_a_whole_number_is_parsed_as_by_hydra(word: str) -> None:
    ours, theirs = Composer(), Composer()
    (quickly,), (slowly,) = ours.parse([word]), theirs._parser.parse_overrides([word])
    assert WHOLE_NUMBER.fullmatch(word)
    assert dataclasses.replace(quickly, config_loader=None) == dataclasses.replace(slowly, config_loader=None)
    assert type(quickly.value()) is type(slowly.value())
    assert (quickly.config_loader is ours._loader) == (slowly.config_loader is theirs._loader)


OTHERS = ["seed=03", "seed=1_0", "seed=+3", "Seed=3", "+seed=3", "a@b=3", "a/b=3", "seed=3 ", "seed=1e3", "seed=3.0"]


@pytest.mark.parametrize("word", OTHERS)
def test_what_is_not_plainly_a_whole_number_is_left_to_hydras_parser(word: str) -> None:
    assert WHOLE_NUMBER.fullmatch(word) is None


def test_a_base_that_refers_to_a_value_is_left_to_omegaconf(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "named.yaml").write_text("# @package _global_\noptimizer:\n  nu: ${seed}\n")
    composer = Composer([f"hydra.searchpath=[file://{tmp_path}]"])
    for seed in (4, 5):
        config = composer.config(["experiment=named", f"seed={seed}"])
        assert config.optimizer.nu == seed  # pyright: ignore[reportAttributeAccessIssue]


def test_jobs_do_not_share_their_settings(composer: Composer) -> None:
    first = composer.config(["optimizer=sgd", "optimizer.lr=0.5", "model.widths=[3]"])
    second = composer.config(["optimizer=sgd"])
    assert isinstance(second.optimizer, SgdConfig)
    assert (first.optimizer.lr, second.optimizer.lr) == (0.5, "default")
    assert second.model.widths is None  # pyright: ignore[reportAttributeAccessIssue]
    seeds = [composer.config([f"seed={seed}"]) for seed in range(2)]
    seeds[0].trainer.sinks.append("another")
    seeds[0].optimizer.lr = 9.0
    assert composer.config(["seed=0"]).trainer.sinks == seeds[1].trainer.sinks == ["tensorboard"]
    assert composer.config(["seed=0"]).optimizer.lr == "default"


def test_one_hydra_composition_serves_all_jobs_of_a_choice(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    load = composer._loader.load_configuration
    monkeypatch.setattr(
        composer._loader, "load_configuration", lambda *a, **k: composed.append(a) or load(*a, **k), raising=True
    )
    for seed in range(5):
        for optimizer in ("gd", "paper_sde"):
            composer.config([f"seed={seed}", f"optimizer={optimizer}", "schedule=step"])
    assert len(composed) == 2


def test_hydras_own_keys_are_set_apart_and_checked() -> None:
    assert split_words(["a=1", "hydra.sweep.dir=x", "hydra/launcher=basic", "+hydra.a=1"]) == (
        ["hydra.sweep.dir=x", "hydra/launcher=basic", "+hydra.a=1"],
        ["a=1"],
    )
    assert Composer(["hydra.sweep.dir=x"]).config(["seed=3"]).seed == 3
    with pytest.raises(ConfigError, match="hydra/launcher=nowhere: must be one of basic"):
        Composer(["hydra/launcher=nowhere"]).config([])
    with pytest.raises(ConfigError, match=r"hydra\.nothing: no such key"):
        Composer(["hydra.nothing=1"]).config([])


def test_more_config_files_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "hot.yaml").write_text("# @package _global_\noptimizer:\n  nu: 0.125\n")
    composer = Composer([f"hydra.searchpath=[file://{tmp_path}]"])
    assert composer.config(["experiment=hot"]).optimizer.nu == 0.125  # pyright: ignore[reportAttributeAccessIssue]


def test_a_long_complaint_is_cut_at_300_characters() -> None:
    assert one_line(ValueError("x" * 400 + "\n    full_key: a.b")) == "a.b: " + "x" * 295
    assert one_line(ValueError("x" * 20 + "\n    full_key: a.b")) == "a.b: " + "x" * 20
    assert one_line(ValueError("y " * 300)) == ("y " * 150)
    assert one_line(ValueError()) == "ValueError"
