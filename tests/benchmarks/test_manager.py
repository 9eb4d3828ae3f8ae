"""What the runtime manager costs is measured on runtimes that are there, and with installations that are made."""

import os
import tempfile
from pathlib import Path

import pytest

from paceline import paths


def test_everything_is_measured_once_a_round(bench, tmp_path, monkeypatch):
    manager = bench("manager")
    for name, few in {"LISTED": 3, "CHECKED": 2, "FILES_EACH": 40, "NATIVE_EACH": 4}.items():
        monkeypatch.setattr(manager, name, few)
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    figures = manager.measure(1, [], tmp_path)
    measured = [*figures["commands"].values(), *figures["operations"].values(), *figures["server"].values()]
    assert all(len(times["wall_s"]) == 1 and times["wall_s"][0] > 0 for times in measured)
    assert {"selecting", "rolling back"} < figures["operations"].keys()
    assert "| operation: selecting |" in manager.tables(figures)


def test_a_name_more_of_the_same_file_adds_nothing(bench, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "library").write_bytes(b"x" * 100_000)
    os.link(first / "library", second / "library")
    (second / "own").write_bytes(b"y" * 5000)
    added = bench("installs").added_bytes([first, second])
    assert added[0] >= 100_000
    assert 5000 <= added[1] < 20_000


def test_what_an_earlier_sitting_did_not_measure_is_left_empty(bench):
    old = {"first": "a@1", "second": "a@2", "added": 3_000_000, "differing_files": 2_000_000}
    new = old | {"added_with_cache": 4_000_000, "linking_s": 0.25}
    *_, before, after = bench("manager")._second_tables([old, new])
    assert before == "| a@1 | a@2 | 3.0 |  | 2.0 |  |"
    assert after == "| a@1 | a@2 | 3.0 | 4.0 | 2.0 | 0.25 |"


@pytest.mark.runtime
def test_an_installation_is_measured_beside_uv_alone(bench, llama_cpp_runtime):
    with tempfile.TemporaryDirectory(dir=paths.cache()) as folder:  # on its file system, where files can be linked
        found = bench("installs").beside_uv(llama_cpp_runtime.id.partition("@")[0], Path(folder), 1)
    assert found["release"] == llama_cpp_runtime.id
    assert 0 < found["rounds"][0]["smoke_test"]["wall_s"] < found["rounds"][0]["paceline"]["wall_s"]
    assert found["disk_bytes"]["second"] < found["disk_bytes"]["first"] / 10
    assert "ratio" in "".join(bench("manager")._install_tables([found]))
