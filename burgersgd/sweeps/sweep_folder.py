"""The folder of a sweep: chooses and makes it, finds the jobs in it, and removes it if no job could be trained."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from burgersgd.config import ConfigError
from burgersgd.recording.claims import remove_lock_file
from burgersgd.recording.files import one_line
from burgersgd.recording.naming import JOBS, job_folders
from burgersgd.recording.progress import shown_path
from burgersgd.recording.run_folder import METRICS
from burgersgd.sweeps.planning import PLAN

MULTIRUN = "multirun.yaml"
SUBMITTED = ".submitit"


class SweepFolder:
    """The folder of one sweep."""

    def __init__(self) -> None:
        self.path = Path()
        self._jobs: dict[str, Path] = {}
        """Folders of jobs by hash."""
        self._made: list[Path] = []
        """Folders that did not exist before: that of the sweep and its parents."""

    def choose(self, root: Path, name: str | None) -> None:
        """Choose the folder of the sweep; an unnamed one gets a folder that no other sweep uses."""
        folder = (root / (name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))).absolute()
        self._made = _missing(folder)
        if name is None:
            stamp, numbers = folder.name, itertools.count(2)
            with contextlib.suppress(OSError):  # it cannot be made; `check_writable` reports that
                while True:
                    try:
                        folder.mkdir(parents=True)
                        break
                    except FileExistsError:
                        folder = folder.with_name(f"{stamp}_{next(numbers)}")
                        self._made = [folder]
        self.path = folder

    @property
    def word(self) -> str:
        """The override that sets the folder of the sweep."""
        folder = shown_path(self.path)
        quoted = QuotedString(folder.replace("${", "\\${"), Quote.single).with_quotes()
        return f"hydra.sweep.dir={quoted if re.search('[^A-Za-z0-9_./-]', folder) else folder}"

    def make(self, folder: Path) -> None:
        """Make the folder of the sweep, if possible. Raises ConfigError where the path cannot be that of a folder."""
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.stat(folder)
        except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
            raise ConfigError(f"hydra.sweep.dir: cannot be a folder: {one_line(error)}") from error
        self.find_jobs(folder)
        self._made = self._made or _missing(folder)
        with contextlib.suppress(OSError):  # no job can be written in it; `check_writable` reports that
            folder.mkdir(parents=True, exist_ok=True)

    def find_jobs(self, folder: Path) -> None:
        """Find the folders of jobs in the folder of the sweep; hashes identify them, not complete names."""
        self.path, self._jobs = folder, job_folders(folder)

    def place(self, digits: str, name: Callable[[], str]) -> Path:
        """Return the folder of the job with the hash `digits`; a new one gets the name that `name` returns."""
        if digits not in self._jobs:
            self._jobs[digits] = self.path / name()
        return self._jobs[digits]

    def check_writable(self) -> None:
        """Raise ConfigError where the sweep cannot write to its folder, instead of an error for each of its jobs."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {one_line(error)}") from error

    def clean_up(self) -> None:
        """Remove the files and folders of a sweep that trained nothing, if its folder is new."""
        if self.path not in self._made:
            return
        with contextlib.suppress(OSError):  # the folder may be missing although its parents were made
            if any(path.joinpath(METRICS).exists() for path in self.path.iterdir()):
                return
            for name in (MULTIRUN, JOBS, PLAN):
                self.path.joinpath(name).unlink(missing_ok=True)
            shutil.rmtree(self.path / SUBMITTED, ignore_errors=True)
            remove_lock_file(self.path)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _missing(folder: Path) -> list[Path]:
    """Return those of the folder and its parents that do not exist."""
    return [path for path in (folder, *folder.parents) if not path.exists()]
