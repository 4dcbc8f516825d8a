"""Fast composition gives what Hydra's own gives, whatever kind of override."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from burgersgd.config import CONF_DIR, ConfigError, SgdConfig
from burgersgd.sweeps.compose import Composer, split_words

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
    ],
)
def test_what_hydra_refuses_is_refused_in_one_line(words: list[str], message: str, composer: Composer) -> None:
    with pytest.raises(ConfigError) as caught:
        composer.config(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jobs_do_not_share_their_settings(composer: Composer) -> None:
    first = composer.config(["optimizer=sgd", "optimizer.lr=0.5", "model.widths=[3]"])
    second = composer.config(["optimizer=sgd"])
    assert isinstance(second.optimizer, SgdConfig)
    assert (first.optimizer.lr, second.optimizer.lr) == (0.5, "default")
    assert second.model.widths is None  # pyright: ignore[reportAttributeAccessIssue]


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
