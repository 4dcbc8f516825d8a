"""In a notebook: one bar, a widget, and a diverged run in red; ipywidgets is replaced by stand-ins."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from burgersgd import api
from burgersgd.config import SgdConfig, TrainConfig
from burgersgd.recording import progress
from tests.conftest import small_config
from tests.forked import forked


class Widget:
    """What tqdm.notebook asks of the widgets of ipywidgets."""

    def __init__(self, **values: Any) -> None:
        self.layout, self.style, self.bar_style = SimpleNamespace(), SimpleNamespace(), ""
        self.__dict__ |= values


def become_a_notebook(*, widgets: bool) -> list[Any]:
    """Make this process look like the kernel of a notebook, and return the list of what it displays."""
    displayed: list[Any] = []
    modules = {name: ModuleType(name) for name in ("ipykernel.zmqshell", "IPython", "IPython.display", "ipywidgets")}
    modules["IPython"].get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})  # pyright: ignore
    modules["IPython.display"].display = displayed.append  # pyright: ignore
    if widgets:
        for name in ("HBox", "HTML", "FloatProgress"):
            setattr(modules["ipywidgets"], name, type(name, (Widget,), {}))
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        sys.modules.pop(name, None)
    sys.modules |= modules if widgets else {k: v for k, v in modules.items() if k != "ipywidgets"}
    return displayed


def shown_by(configs: list[TrainConfig], tmp_path: Path, *, widgets: bool = True) -> dict[str, Any]:
    """Train in a notebook and return what was shown."""

    def action() -> int:
        displayed = become_a_notebook(widgets=widgets)
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        api.train_all(configs)
        bars = [
            {"style": bar.bar_style, "at": bar.value, "end": bar.max, "words": [text.value for text in (left, right)]}
            for left, bar, right in (box.children for box in displayed)
        ]
        shown = {"bars": bars, "out": sys.stdout.getvalue(), "err": sys.stderr.getvalue()}
        Path("shown.json").write_text(json.dumps(shown))
        return 0

    code = forked(action)
    crash = tmp_path / "crash.txt"
    assert code == 0, crash.read_text() if crash.exists() else ""
    return json.loads((tmp_path / "shown.json").read_text())


@pytest.mark.parametrize("widths", [(12,), (12, 9)])
def test_there_is_one_bar_and_no_line(widths: tuple[int, ...], tmp_path: Path) -> None:
    configs = [small_config() for _ in widths]
    for config, width in zip(configs, widths, strict=True):
        config.model.width = width  # pyright: ignore[reportAttributeAccessIssue]  # another fleet
    shown = shown_by(configs, tmp_path)
    (bar,) = shown["bars"]
    assert (bar["style"], bar["at"], bar["end"]) == ("success", 40 * len(widths), 40 * len(widths))
    assert "grad/s" in bar["words"][1]
    assert shown["out"] == shown["err"] == ""


def test_the_bar_of_a_run_that_diverged_is_red(tmp_path: Path) -> None:
    shown = shown_by([small_config(optimizer=SgdConfig(lr=1e30))], tmp_path)
    (bar,) = shown["bars"]
    assert bar["style"] == "danger"


def test_without_ipywidgets_the_bar_is_text(tmp_path: Path) -> None:
    shown = shown_by([small_config()], tmp_path, widgets=False)
    assert shown["bars"] == []
    assert shown["err"].count("\n") <= 1
    assert "100%|" in shown["err"]


def test_the_bar_of_a_sweep_knows_its_total(tmp_path: Path) -> None:
    def action() -> int:
        displayed = become_a_notebook(widgets=True)
        bar = progress.SweepProgress()
        bar.expect(2, 80)
        bar.done(1, 40)
        bar.close()
        (box,) = displayed
        assert (box.children[1].max, box.children[1].value) == (80, 40)
        return 0

    assert forked(action) == 0, (tmp_path / "crash.txt").read_text()


def test_a_run_that_diverged_looks_like_it() -> None:
    good, diverged = api.train_all([small_config(), small_config(optimizer=SgdConfig(lr=1e30))], progress=False)
    assert "color" not in good._repr_html_()
    assert '<tr style="color: #b00020"><th>DIVERGED</th><td>sgd, lr 1e+30' in diverged._repr_html_()
    assert diverged._repr_html_().count("color") == 1
    assert repr(diverged).startswith("Result(DIVERGED: ")
