"""The snapshot names what a repetition needs, and never another repository's commit."""

import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

from burgersgd.recording import environment
from burgersgd.recording.environment import code_version, environment_snapshot, environment_text, git_state


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "nobody@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setattr(environment, "GIT_TIMEOUT_SECONDS", 120.0)  # a busy machine is no reason to give up
    git(tmp_path, "init", "--quiet")
    tmp_path.joinpath("file").write_text("one")
    return tmp_path


def git(path: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


def commit(path: Path) -> str:
    git(path, "add", ".")
    git(path, "commit", "--quiet", "--message", "state")
    return git(path, "rev-parse", "HEAD")


def test_snapshot_is_plain_json_and_names_versions_machine_and_threads() -> None:
    snapshot = environment_snapshot("cpu")
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot
    assert snapshot["python"] == platform.python_version()
    assert snapshot["torch"] == torch.__version__
    assert snapshot["cuda"] == torch.version.cuda
    assert snapshot["cores"] == os.cpu_count()
    assert snapshot["device"] == "cpu"
    assert snapshot["device_name"] == snapshot["cpu"] != ""
    assert {"burgersgd", "numpy", "torchvision", "platform", "usable_cores", "git"} <= snapshot.keys()
    assert str(Path.home()) + os.sep not in json.dumps(snapshot)


def test_threads_are_those_of_the_moment() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert environment_snapshot()["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_git_state_tells_commit_and_uncommitted_changes(checkout: Path) -> None:
    assert git_state(checkout) == {"commit": None, "dirty": True}
    head = commit(checkout)
    assert git_state(checkout) == {"commit": head, "dirty": False}
    checkout.joinpath("file").write_text("two")
    assert git_state(checkout) == {"commit": head, "dirty": True}
    git(checkout, "checkout", "--quiet", "file")
    checkout.joinpath("untracked.py").write_text("")
    assert git_state(checkout) == {"commit": head, "dirty": True}


def test_package_installed_inside_another_repository_is_not_its_checkout(checkout: Path) -> None:
    commit(checkout)
    inside = checkout / ".venv" / "lib"
    inside.mkdir(parents=True)
    assert git_state(inside) is None


def test_git_variables_of_a_hook_do_not_mislead(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = commit(checkout)
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert git_state(checkout) == {"commit": head, "dirty": False}


def test_absent_or_slow_git_is_tolerated(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(checkout)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "nowhere"))
        assert git_state(checkout) == {"commit": None, "dirty": None}
    monkeypatch.setattr(environment, "GIT_TIMEOUT_SECONDS", 0.0)
    assert git_state(checkout) == {"commit": None, "dirty": None}


def test_package_that_is_not_installed_has_no_version() -> None:
    assert environment._version("burgersgd-no-such-package") is None


def test_the_processor_is_named_as_the_system_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = environment._cpu_model()
    assert isinstance(name, str)
    described = Path("/proc/cpuinfo")
    if described.exists() and "model name" in described.read_text():
        assert re.search(rf"^model name\s*: {re.escape(name)}$", described.read_text(), re.MULTILINE)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert environment._cpu_model.__wrapped__() == "riscv64"


def test_environment_json_is_the_snapshot_of_the_moment() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert json.loads(environment_text("cpu")) == environment_snapshot("cpu") | {"threads": threads}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("git", "text"),
    [
        (None, ""),
        ({"commit": None, "dirty": None}, ""),
        ({"commit": None, "dirty": True}, " with changes"),
        ({"commit": "0123456789abcdef", "dirty": False}, " 0123456789ab"),
        ({"commit": "0123456789abcdef", "dirty": True}, " 0123456789ab with changes"),
    ],
)
def test_code_is_named_by_version_commit_and_changes(
    git: dict[str, object] | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_machine", lambda: {"burgersgd": "2.3.4", "git": git})
    assert code_version.__wrapped__() == f"burgersgd 2.3.4{text}"
