"""The pages say what the code says."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import paceline
from paceline import Engine, ModelFormat, hookspecs, types
from paceline.plugins import PluginState

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "tests" / "thirdparty" / "paceline-echo"
PLUGIN_PAGE = (ROOT / "docs" / "writing-an-engine-plugin.md").read_text()
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text()

SNIPPETS = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PLUGIN_PAGE, re.MULTILINE | re.DOTALL)
FRAGMENTS = [part.strip("\n") for snippet in SNIPPETS for part in re.split(r"^# …$", snippet, flags=re.MULTILINE)]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: fragment.strip().splitlines()[0])
def test_every_snippet_is_in_the_echo_plugin(fragment):
    files = [path for path in ECHO.rglob("*") if path.suffix in (".py", ".toml")]
    assert any(fragment in path.read_text() for path in files)


def test_there_are_snippets():
    assert len(FRAGMENTS) >= 8


def _hooks():
    return [f for name, f in inspect.getmembers(hookspecs, inspect.isfunction) if name.startswith("paceline_")]


@pytest.mark.parametrize("hook", _hooks(), ids=lambda hook: hook.__name__)
def test_every_hook_is_documented_with_its_exact_arguments(hook):
    signature = f"`{hook.__name__}({', '.join(inspect.signature(hook).parameters)})`"
    assert f"| {signature} | `{inspect.signature(hook).return_annotation}`" in PLUGIN_PAGE


def test_both_hooks_were_found():
    assert len(_hooks()) == 2


def _members():
    for kind in (Engine, ModelFormat):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                yield f"`{name}({', '.join(inspect.signature(function).parameters)})`"
        yield from (f"`{name}`" for name in kind.__annotations__)


@pytest.mark.parametrize("member", list(_members()))
def test_every_member_of_engine_and_format_is_documented(member):
    assert f"| {member} |" in PLUGIN_PAGE


def test_every_type_the_page_names_is_a_public_name():
    known = set(paceline.__all__) | {name for name in dir(types) if name in paceline.__all__}
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", PLUGIN_PAGE))
    assert named
    assert named <= known


def test_every_field_the_page_names_exists():
    for field in ("config_settings", "chat_template", "pairing", "source", "sha256"):
        assert f"`{field}" in PLUGIN_PAGE
        assert any(field in {f.name for f in fields(kind)} for kind in (types.Recipe, types.ModelFacts, types.Package))


@pytest.mark.parametrize("state", PluginState)
def test_every_plugin_state_is_explained(state):
    assert f"| `{state}` |" in CONCEPTS


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_there_are_as_many_tests_as_the_page_on_reliability_says():
    page = (ROOT / "docs" / "reliability.md").read_text()
    said = {
        tuple(re.findall(r"`(tests/.*?)`", files)): int(n)
        for files, n in re.findall(r"\(([^()]+), (\d+) tests\)", page)
    }
    assert len(said) == 4
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n0", "-p", "no:cacheprovider", *sum(said, ())]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout.splitlines()
    assert said == {files: sum(line.startswith(tuple(f"{f}::" for f in files)) for line in found) for files in said}
