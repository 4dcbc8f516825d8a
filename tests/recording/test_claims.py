"""Claims: one process at a time works on a run, looking claims nothing, and a dead process holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from burgersgd.recording import claims

HOLDER = """
import sys
from pathlib import Path
from burgersgd.recording import claims
print(claims.claim(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_a_claim_excludes_other_processes_until_its_own_dies(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert claims.is_claimed(run)
        assert not claims.claim(run)
        assert not claims.is_claimed(other)
        assert claims.claim(other)
        claims.release(other)
        assert claims.is_claimed(run)
        holder.kill()
    assert not claims.is_claimed(run)
    assert claims.claim(run)
    claims.release(run)


def test_within_a_process_a_claim_is_taken_once_and_looking_does_not_lose_it(tmp_path: Path) -> None:
    runs = [tmp_path / str(i) for i in range(300)]  # one open file for all
    assert all(map(claims.claim, runs))
    assert not claims.claim(runs[7])
    assert claims.is_claimed(runs[7])
    assert not claims.is_claimed(tmp_path / "another")
    command = [sys.executable, "-c", HOLDER, str(runs[8])]
    assert subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout == "False\n"
    for run in runs:
        claims.release(run)
    claims.release(runs[0])  # nothing happens
    assert not claims.is_claimed(runs[7])
    assert not claims._files


@pytest.mark.parametrize("name", ["run", "größe", "a b"])
def test_names_stand_for_bytes_that_every_file_system_has(name: str) -> None:
    assert 0 <= claims._byte(name) < 2**40
