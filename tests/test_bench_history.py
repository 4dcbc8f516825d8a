"""The record of the benchmarks: added lines are read back by machine, and can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench_history import append, draw, main, read, series


def test_lines_are_added_read_back_and_drawn_by_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = tmp_path / "deep" / "history.jsonl"
    first = append({"w1, 1 thread": {"P1": 1.0, "local_entropy auto": 11.80004}}, history, rounds=3)
    append({"w1, 1 thread": {"local_entropy auto": 12.5}, "w2, 2 threads": {"local_entropy auto": 9.25}}, history)
    other = first | {"machine": first["machine"] | {"cpu": "another"}, "date": "2001-01-01T00:00:00+00:00"}
    with history.open("a") as stream:
        stream.write(json.dumps(other) + "\n")
    lines = read(history)
    assert [line["machine"]["cpu"] == "another" for line in lines] == [True, False, False]
    assert (lines[1]["rounds"], lines[1]["code"][:9]) == (3, "burgersgd")
    found = series(lines, first["machine"]["cpu"])
    assert [ratio for _, ratio in found["w1, 1 thread"]["local_entropy auto"]] == [11.8, 12.5]
    assert list(found["w1, 1 thread"]) == ["local_entropy auto"]
    assert len(found["w2, 2 threads"]["local_entropy auto"]) == 1
    draw(lines, first["machine"]["cpu"], tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sys.argv", ["bench_history", "--history", str(history), "--cpu", "a third one"])
    assert main() == 2


def test_a_line_that_is_no_measurement_is_named(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    for text in ("{", "[]", '{"date": "yesterday"}', '{"date": "2001-01-01", "code": "c", "machine": {}}'):
        history.write_text(text + "\n")
        with pytest.raises(ValueError, match="line 1: is no measurement"):
            read(history)
