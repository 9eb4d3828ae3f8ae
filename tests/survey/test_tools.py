import sys
from pathlib import Path

import pytest

from paceline.survey.answers import Answers
from paceline.survey.tools import KNOWN, tool_versions, tools

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")


@pytest.fixture
def program(tmp_path):
    def make(name: str, mode: int = 0o755) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
        return path

    return make


def test_every_known_tool_is_reported_found_or_not(tmp_path):
    found = tools({"PATH": str(tmp_path)}).value
    assert set(found) == set(KNOWN)
    assert found["cmake"] is None


def test_any_compiler_is_a_compiler(program, tmp_path):
    compiler = program("clang++")
    found = tools({"PATH": str(tmp_path)}).value
    assert found["c++"] == compiler
    assert found["clang++"] == compiler
    assert found["g++"] is None


def test_what_cannot_be_executed_is_no_tool(program, tmp_path):
    program("cmake", 0o644)
    assert tools({"PATH": str(tmp_path)}).value["cmake"] is None


def test_variables_name_the_compiler_before_path(program, tmp_path):
    program("c++")
    own = program("own/my-compiler")
    assert tools({"PATH": str(tmp_path), "CXX": f"{own} -O2"}).value["c++"] == own
    assert tools({"PATH": str(tmp_path), "CXX": "/gone"}).value["c++"] == tmp_path / "c++"


def test_nvcc_is_found_in_the_toolkits_folder(program, tmp_path):
    nvcc = program("cuda/bin/nvcc")
    assert tools({"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path / "cuda")}).value["nvcc"] == nvcc


def test_the_version_of_nvcc_is_asked_once(program, tmp_path):
    nvcc = program("nvcc")
    body = "#!/bin/sh\necho asked >> {}\necho 'Cuda compilation tools, release {}, V{}.131'\n"
    nvcc.write_text(body.format(tmp_path / "log", "12.4", "12.4"))
    answers = Answers(tmp_path / "cache")

    fact = tool_versions({"nvcc": nvcc}, answers, 30)
    assert (fact.value, fact.source) == ({"nvcc": "12.4"}, f"{nvcc} --version")
    again = tool_versions({"nvcc": nvcc}, answers, 30)
    assert again.value == {"nvcc": "12.4"}
    assert "--version, asked 20" in again.source
    assert (tmp_path / "log").read_text() == "asked\n"

    nvcc.write_text(body.format(tmp_path / "log", "13.0", "13.0") + "# another program\n")
    assert tool_versions({"nvcc": nvcc}, answers, 30).value == {"nvcc": "13.0"}


def test_a_compiler_that_tells_no_version_leaves_it_unknown(program, tmp_path):
    fact = tool_versions({"nvcc": program("nvcc")}, Answers(tmp_path / "cache"), 30)
    assert fact.value is None
    assert "no version in its answer" in fact.source
    assert tool_versions({"nvcc": None}, Answers(), 30).value == {}
