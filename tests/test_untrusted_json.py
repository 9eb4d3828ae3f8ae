"""JSON from outside: one reader, whose every failure is a ValueError, and files whose readers say what is damaged."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline
from paceline.errors import PluginError, RegistryError, StoreError
from paceline.packages import first_use
from paceline.plugin_folder import read_state, state_file
from paceline.registry import found_file, found_upstream, trust
from paceline.store import Store
from paceline.survey.answers import FILE, Answers
from paceline.survey.nvidia import parse_library
from paceline.tokens import Tokens
from paceline.types import Package, Recipe
from paceline.untrusted_json import DEEPEST, TooDeep, TooMany, bound, parse, read_object

# As deep as Python gives up on, and as what it still reads but nobody could walk through.
NESTED = ["[" * 100_000, "[" * 900 + "]" * 900, '{"schema_version": ' + "[" * 900 + "]" * 900 + "}"]
ITS_OWN = {"chat/rendering.py", "chat/child.py", "manager/errand.py", "registry/signed.py", "serving/samples.py"}
"""Files that read with `json` what Paceline itself wrote, in this very process or to its child."""


@pytest.mark.parametrize("text", [*NESTED, '{"a":' * 5000, "", "{", b"\xff\xfe\x00", "[1] 2", "9" * 5000])
def test_what_is_wrong_is_a_value_error(text, tmp_path):
    with pytest.raises(ValueError, match=r"."):
        parse(text)
    file = tmp_path / "file.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"."):
        read_object(file)


def test_how_deep_it_may_be():
    assert parse("[" * DEEPEST + "]" * DEEPEST)
    assert parse('{"a": [1, "b", null, {"c": 2.5}]}') == {"a": [1, "b", None, {"c": 2.5}]}
    with pytest.raises(TooDeep):
        parse("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2))


def size(value):
    """Values and names, containers, and those of them that are empty."""
    if not isinstance(value, (dict, list)):
        return 1, 0, 0
    inner = [size(item) for item in (value.values() if isinstance(value, dict) else value)]
    values, containers, empty = (sum(column) for column in zip(*inner, strict=True)) if inner else (0, 0, 1)
    return 1 + values + (len(value) if isinstance(value, dict) else 0), containers + 1, empty


tricky = st.text('[]{},:"\\\\ab€', max_size=6)


@given(
    st.recursive(
        st.none() | st.integers() | tricky,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky, inner, max_size=4),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_values_are_counted_before_they_are_read(value, ascii_):
    data = json.dumps(value, ensure_ascii=ascii_).encode()
    values, containers, empty = size(value)
    bound(data, values=values + empty, containers=containers)
    with pytest.raises(TooMany):
        bound(data, values=values - 1, containers=containers)
    if containers:
        with pytest.raises(TooMany):
            bound(data, values=values + empty, containers=containers - 1)


@pytest.mark.parametrize("text", NESTED)
def test_files_in_the_home_that_are_nested_too_deeply_are_damaged_files(text, tmp_path):
    registry = trust.make_trusted(tmp_path, "https://example.org/registry", {}, "acme")
    verified = registry.folder / "verified.json"
    tokens, unpinned = Tokens(tmp_path), Recipe((Package("a", "1", index="https://a.example"),))
    for file, kind, read in [
        (state_file(tmp_path), PluginError, lambda: read_state(tmp_path)),
        (tmp_path / "registries" / "acme.json", RegistryError, lambda: trust.trusted(tmp_path)),
        (verified, RegistryError, lambda: trust.verified(registry)),
        (found_file(tmp_path), RegistryError, lambda: found_upstream(found_file(tmp_path))),
        (first_use.record_file(tmp_path), StoreError, lambda: first_use.pinned(unpinned, tmp_path)),
        (tmp_path / "selection.json", StoreError, Store(tmp_path).selection),
        (tokens.file, StoreError, tokens.all),
    ]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        with pytest.raises(kind) as refused:
            read()
        assert str(file) in refused.value.message
        assert refused.value.help


@pytest.mark.parametrize("text", NESTED)
def test_answers_that_are_nested_too_deeply_are_asked_for_again(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    assert Answers(tmp_path).get("name", "key", lambda: "answer") == ("answer", None)
    assert Answers(tmp_path).get("name", "key", lambda: "another")[0] == "answer"  # and the file is whole again
    with pytest.raises(ValueError, match="wrote what is no answer"):
        parse_library(text)


def test_nobody_in_the_host_reads_what_is_not_its_own_by_other_means():
    root = Path(paceline.__file__).parent
    found = set()
    for file in root.rglob("*.py"):
        name = file.relative_to(root).as_posix()
        calls = [n.func for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        read = [c for c in calls if isinstance(c, ast.Attribute) and c.attr in ("load", "loads")]
        if any(isinstance(c.value, ast.Name) and c.value.id == "json" for c in read):
            found.add(name)
    assert found - {"untrusted_json.py"} == ITS_OWN
