from __future__ import annotations

import dataclasses
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from burgersgd import config as schema
from burgersgd.conf_text import conf_text
from burgersgd.config import (
    CONF_DIR,
    GROUPS,
    PRESETS,
    AdamWConfig,
    ConfigError,
    CosineScheduleConfig,
    DeviceConfig,
    DigitsConfig,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    NpzConfig,
    SgdConfig,
    SweepConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.keys import all_keys
from burgersgd.studies.config import studies

ROOT = Path(__file__).parents[1]
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_yaml_files_are_what_their_classes_say(group: str, choice: str) -> None:
    """After a change of a key: python scripts/write_conf.py."""
    text = (CONF_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
    if choice not in PRESETS.get(group, ()):
        assert text == conf_text(GROUPS[group][choice], choice)
        return
    written = yaml.safe_load(text)
    assert len(written.pop("defaults")) == 2
    assert written.keys() < {f.name for f in dataclasses.fields(GROUPS[group][choice])}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_yaml_files_read_back_are_the_defaults_of_their_class(group: str, choice: str) -> None:
    if choice in PRESETS.get(group, ()):
        return
    cls = GROUPS[group][choice]
    values = yaml.safe_load(conf_text(cls, choice))
    del values["defaults"]
    if cls is NpzConfig:
        assert values.pop("path") == "???"
        values["path"] = "x.npz"
    default = dataclasses.asdict(NpzConfig(path="x.npz") if cls is NpzConfig else cls())
    if any("names" in f.metadata for f in dataclasses.fields(cls)):
        default["name"] = choice
    assert values == default


def test_the_page_of_all_keys_is_what_the_classes_say() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "keys_page.py"))["page"]()
    assert (ROOT / "docs" / "keys.md").read_text(encoding="utf-8") == page, "run python scripts/write_conf.py"
    choices = [f"{group}={name}" for group, name in CHOICES if name not in PRESETS.get(group, ()) and name != "default"]
    for key in (*all_keys(), *choices):
        assert f"`{key}`" in page, key


def test_every_key_has_a_meaning_also_in_python() -> None:
    for choices in GROUPS.values():
        for cls in choices.values():
            for f in dataclasses.fields(cls):
                if "names" not in f.metadata:
                    assert len(f.metadata["meaning"]) > 3, f"{cls.__name__}.{f.name}"
                    assert f"{f.name}: {f.metadata['meaning']} (" in (cls.__doc__ or "")
    line = "ema_weight: weight of the newest y in the moving average; used only with averaging=ema "
    line += "(float > 0 and <= 1), default 0.25"
    assert line in (LocalEntropyConfig.__doc__ or "").splitlines()


def test_the_schema_is_imported_without_torch() -> None:
    code = "import sys, burgersgd.config, burgersgd.registry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_file_of_conf_has_a_class() -> None:
    files = {(path.parent.name, path.stem) for path in CONF_DIR.glob("*/*.yaml")} - {
        ("study", name) for name in studies()
    }
    assert files == set(CHOICES) | {("experiment", "theory_regime")}  # settings of several groups


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalEntropyConfig(nu=-1e-3), "optimizer.nu=-0.001: must be >= 0"),
        (lambda: LocalEntropyConfig(gamma=0), "optimizer.gamma=0: must be > 0 (inf allowed)"),
        (lambda: LocalEntropyConfig(gamma=math.nan), "optimizer.gamma=nan: must be > 0 (inf allowed)"),
        (lambda: LocalEntropyConfig(lr=0.0), "optimizer.lr=0.0: must be > 0"),
        (lambda: LocalEntropyConfig(lr=math.nan), "optimizer.lr=nan: must be > 0 and finite"),
        (lambda: LocalEntropyConfig(lr=math.inf), "optimizer.lr=inf: must be > 0 and finite"),
        (lambda: LocalEntropyConfig(inner_steps=0), "optimizer.inner_steps=0: must be >= 1"),
        (lambda: LocalEntropyConfig(burn_in=-1), "optimizer.burn_in=-1: must be >= 0"),
        (lambda: LocalEntropyConfig(outer_step=1.5), "optimizer.outer_step=1.5: must be > 0 and <= 1"),
        (lambda: LocalEntropyConfig(averaging="mode"), "optimizer.averaging=mode: must be one of uniform, ema, last"),
        (
            lambda: LocalEntropyConfig(gamma=0.5, gamma_min=0.6),
            "optimizer.gamma_min=0.6: must be <= optimizer.gamma=0.5",
        ),
        (lambda: SgdConfig(nesterov=True), "optimizer.nesterov=true: needs optimizer.momentum > 0"),
        (
            lambda: LocalEntropyConfig(momentum=0.5, nesterov=True),
            "optimizer.nesterov=true: needs optimizer.nu=0 with optimizer.momentum=0.5",
        ),
        (
            lambda: LocalEntropyConfig(momentum=0.5, integrator="leimkuhler_matthews"),
            "optimizer.integrator=leimkuhler_matthews: needs optimizer.nu=0 with optimizer.momentum=0.5",
        ),
        (lambda: AdamWConfig(beta2=1.0), "optimizer.beta2=1.0: must be >= 0 and < 1"),
        (lambda: DigitsConfig(label_noise=1.0), "dataset.label_noise=1.0: must be >= 0 and < 1"),
        (lambda: DigitsConfig(validation_fraction=0.7, test_fraction=0.3), "dataset.test_fraction=0.3: must be < 0.3"),
        (lambda: MlpConfig(depth=-1), "model.depth=-1: must be >= 0"),
        (lambda: MlpConfig(widths=[8, 0]), "model.widths=[8, 0]: must be >= 1"),
        (lambda: MlpConfig(widths=["a"]), "model.widths=['a']: must be of type list[int]"),  # pyright: ignore
        (lambda: LossConfig(name="hinge"), "loss.name=hinge: must be one of"),
        (lambda: CosineScheduleConfig(final=2.0), "schedule.final=2.0: must be >= 0 and <= 1"),
        (lambda: TrainerConfig(batch_size=0), "trainer.batch_size=0: must be >= 1"),
        (lambda: TrainerConfig(batch_size="8"), "trainer.batch_size=8: must be of type int"),  # pyright: ignore
        (lambda: TrainerConfig(batch_size=True), "trainer.batch_size=true: must be of type int"),
        (lambda: TrainerConfig(batch_size=None), "trainer.batch_size=null: must not be null"),  # pyright: ignore
        (lambda: TrainerConfig(drop_last=1), "trainer.drop_last=1: must be of type bool"),  # pyright: ignore
        (lambda: TrainerConfig(budget=10**16), "trainer.budget=10000000000000000: must be >= 1 and < 9.0072e+15"),
        (lambda: TrainerConfig(log_every=2**63), "trainer.log_every=9223372036854775808: must fit into 64 bits"),
        (lambda: DigitsConfig(name="mnist"), "dataset.name=mnist: must be one of digits"),
        (lambda: SgdConfig(name="gd"), "optimizer.name=gd: must be one of sgd"),
        (lambda: MlpConfig(init_scale=1e39), "model.init_scale=1e+39: must be > 0 and <= 1e+06"),
        (lambda: DeviceConfig(threads=2**20), "device.threads=1048576: must be >= 1 and <= 1024"),
        (lambda: NpzConfig(path="a\0b"), r"dataset.path='a\x00b': must be text without control characters"),
        (lambda: NpzConfig(path="a\nb"), "must be text without control characters"),
        (lambda: TrainConfig(run_name="\udcff"), "must be text without control characters"),
        (
            lambda: SweepConfig(name="a/b"),
            "sweep.name=a/b: must consist of letters, digits, _ . and -, and not start with . or -",
        ),
        (lambda: SweepConfig(name=".."), "sweep.name=..: must consist of letters, digits"),
        (lambda: SweepConfig(sampler="halton"), "sweep.sampler=halton: must be one of grid, random, sobol, optuna"),
        (lambda: SweepConfig(n_samples=0), "sweep.n_samples=0: must be >= 1"),
        (lambda: DeviceConfig(name="tpu"), "device.name=tpu: must be one of auto, cpu, cuda, mps"),
        (lambda: TrainConfig(seed=-1), "seed=-1: must be >= 0"),
        (lambda: TrainConfig(optimizer="sgd"), "optimizer=sgd: must be of type OptimizerConfig"),  # pyright: ignore
        (lambda: TrainConfig(run_name=""), "run_name=: must name a folder below output_root"),
        (lambda: TrainConfig(run_name="a/../.."), "run_name=a/../..: must name a folder below output_root"),
        (lambda: TrainConfig(run_name="/a"), "run_name=/a: must name a folder below output_root"),
        (
            lambda: TrainConfig(
                optimizer=LocalEntropyConfig(inner_steps=8, burn_in=3), trainer=TrainerConfig(budget=10)
            ),
            "trainer.budget=10: must be >= optimizer.burn_in + optimizer.inner_steps = 11, or x would never move",
        ),
    ],
)
def test_out_of_range_settings_are_refused_naming_key_value_and_what_is_allowed(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_accepted_for_floats() -> None:
    assert isinstance(LocalEntropyConfig(gamma=2).gamma, float)


def test_numbers_of_numpy_become_pythons() -> None:
    config = LocalEntropyConfig(lr=np.float32(0.5), inner_steps=np.int64(3))  # pyright: ignore[reportArgumentType]
    assert (type(config.lr), type(config.inner_steps)) == (float, int)
    assert config == LocalEntropyConfig(lr=0.5, inner_steps=3)


def test_what_is_set_later_is_checked_too() -> None:
    config = TrainConfig()
    with pytest.raises(ConfigError, match=r"^optimizer\.lr=-1\.0: must be > 0$"):
        config.optimizer.lr = -1.0
    assert config.optimizer.lr == LocalEntropyConfig().lr
    with pytest.raises(ConfigError, match=r"^optimizer\.nuu=1: no such key; there are name, lr, nu, gamma, "):
        config.optimizer.nuu = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_gamma_may_be_infinite() -> None:
    assert LocalEntropyConfig(gamma=math.inf).gamma == math.inf


def test_every_float_of_an_optimizer_is_a_hyperparameter() -> None:
    hyper = LocalEntropyConfig(nu=0.25, gamma=0.5).hyper()
    assert hyper["nu"] == 0.25
    assert hyper["gamma"] == 0.5
    assert set(hyper) == {f.name for f in dataclasses.fields(LocalEntropyConfig) if f.type in ("float", "LearningRate")}
    assert "inner_steps" not in hyper


def test_all_groups_carry_their_name_in_messages() -> None:
    for group, choices in schema.GROUPS.items():
        for cls in choices.values():
            assert cls.group == group


def test_a_star_import_gives_every_class() -> None:
    names: dict[str, Any] = {}
    exec("from burgersgd.config import *", names)
    for name in (
        "LocalEntropyConfig",
        "SamConfig",
        "NpzConfig",
        "MlpConfig",
        "TrainConfig",
        "LossConfig",
        "ConfigError",
    ):
        assert isinstance(names[name], type)
