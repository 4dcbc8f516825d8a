"""TensorBoard's own pages in a browser: one row per setting in HPARAMS, curves side by side in CUSTOM SCALARS."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from burgersgd.cli import main
from tests.browser import browser, in_a_browser

SWEEP = ["train", "--multirun", "optimizer=sgd,local_entropy", "optimizer.lr=0.05,0.2", "seed=range(3)"]
SWEEP += ["trainer.budget=400", "model.width=8", "sweep.name=s", "dataset.train_size=300"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, "-q"]) == 0
    return tmp_path / "outputs" / "multirun" / "s"


@pytest.fixture
def address(sweep: Path) -> Iterator[str]:
    """Return where TensorBoard serves the sweep."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--load_fast=false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                    if answer.read().count(b"lr=") == 12:
                        break
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
@in_a_browser
def test_the_pages_of_a_sweep_show_settings_and_all_curves_side_by_side(sweep: Path, address: str) -> None:
    shots = Path(os.environ.get("SCREENSHOTS", sweep))
    errors = defaultdict(list)
    with (sweep / "results.csv").open() as file:
        for row in csv.DictReader(file):
            errors[row["optimizer.name"], row["optimizer.lr"]].append(float(row["validation_error"]))
    assert {len(values) for values in errors.values()} == {3}
    with browser(sweep.parent) as tab:
        means = [f"{sum(values) / 3:.5g}" for values in errors.values()]
        text = tab.open(f"{address}/#hparams", *means)
        tab.screenshot(shots / "hparams.png")
        rows = set(re.findall(r"\b(?:sgd|local_entropy)-digits-[0-9a-f]{12}\b", text))
        assert len(rows) == 4
        assert "seed" not in re.findall(r"\S+", text)
        text = tab.open(f"{address}/#custom_scalars", "training loss", "validation loss", "validation error")
        time.sleep(3)  # the curves are drawn
        tab.screenshot(shots / "custom_scalars.png")
        for name in ("sgd,lr=0.05,seed=0", "local_entropy,lr=0.2,seed=2"):
            assert name in text
