from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from paceline.engine import ModelFormat
from paceline.errors import AmbiguousError, NotFoundError
from paceline.formats import builtin_formats
from paceline.library import Library, ModelFolder


def test_models_have_ids_publishers_and_facts(add_model, open_library):
    path = add_model("Some-Pub/Tiny-GGUF/Tiny-1M-F16.gguf")
    add_model("flat-f16.gguf")
    library = open_library()
    assert [(m.id, m.publisher, m.format) for m in library.models()] == [
        ("flat", "local", "gguf"),
        ("tiny-1m", "Some-Pub", "gguf"),
    ]
    model = library.get("tiny-1m")
    assert model.path == path
    assert (model.facts.quantization, model.facts.max_context_length) == ("F16", 2048)
    assert library.problems() == ()


def test_a_folder_may_name_its_publisher(add_model, models, open_library):
    add_model("x-f16.gguf")
    assert open_library(ModelFolder(models, publisher="paceline")).get("paceline/x").publisher == "paceline"


def test_a_model_is_found_by_every_name_it_has(add_model, open_library):
    add_model("Pub/M-GGUF/M-Q4_0.gguf", general__file_type=2)
    add_model("Pub/M-GGUF/M-Q8_0.gguf", general__file_type=7)
    add_model("Other/M-GGUF/M-Q8_0.gguf", general__file_type=7)
    library = open_library()
    assert [m.id for m in library.models()] == ["m@q4_0", "other/m@q8_0", "pub/m@q8_0"]
    for name, expected in {
        "m@q4_0": "m@q4_0",
        "M@Q4_0": "m@q4_0",
        " m@q4_0 ": "m@q4_0",
        "pub/m@q4_0": "m@q4_0",
        "Pub/M@q8_0": "pub/m@q8_0",
        "other/m": "other/m@q8_0",
        "m-q4_0": "m@q4_0",
        "M-Q4_0.gguf": "m@q4_0",
    }.items():
        assert library.get(name).id == expected, name


@pytest.mark.parametrize(
    ("name", "choices"),
    [("m", ["m@q4_0", "other/m@q8_0", "pub/m@q8_0"]), ("m@q8_0", ["other/m@q8_0", "pub/m@q8_0"])],
)
def test_a_name_of_several_models_lists_them(add_model, open_library, name, choices):
    add_model("Pub/M-GGUF/M-Q4_0.gguf")
    add_model("Pub/M-GGUF/M-Q8_0.gguf")
    add_model("Other/M-GGUF/M-Q8_0.gguf")
    with pytest.raises(AmbiguousError) as error:
        open_library().get(name, param="draft_model")
    assert error.value.param == "draft_model"
    assert error.value.message.endswith(": " + ", ".join(choices))


def test_an_unknown_name_gets_close_ones(add_model, open_library):
    add_model("p/r/qwen2.5-7b-instruct-q4_k_m.gguf")
    with pytest.raises(NotFoundError) as error:
        open_library().get("qwen2.5-7b-instrct")
    assert error.value.param == "model"
    assert "qwen2.5-7b-instruct" in error.value.help


@pytest.mark.parametrize("name", ["", "/", "@", "a/b/c@d@e", "\0", "x" * 10_000])
def test_odd_names_are_unknown(add_model, open_library, name):
    add_model("a.gguf")
    with pytest.raises(NotFoundError):
        open_library().get(name)


def test_what_cannot_be_read_is_a_problem_and_stops_nothing(add_model, models, open_library, write_gguf):
    add_model("good.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF")
    write_gguf(models / "vocabulary.gguf", {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"]})
    library = open_library()
    assert [m.id for m in library.models()] == ["good"]
    assert [p.path.name for p in library.problems()] == ["broken.gguf", "vocabulary.gguf"]
    with pytest.raises(NotFoundError, match="no weights"):
        library.get("vocabulary")


def test_a_name_that_is_not_utf8_is_a_problem(add_model, models, open_library):
    path = add_model("a.gguf")
    path.rename(os.fsdecode(os.fsencode(models) + b"/b\xff.gguf"))
    (problem,) = open_library().problems()
    assert problem.error.message == "b\ufffd.gguf has a name that is not UTF-8"


def test_links_and_overlapping_folders_give_each_model_once(add_model, models, open_library):
    path = add_model("pub/r/a.gguf")
    (models / "pub/r/b.gguf").symlink_to(path)
    (models / "again").symlink_to(models / "pub", target_is_directory=True)
    assert len(open_library(models, models / "pub").models()) == 1


def test_hard_links_are_models_of_their_own(add_model, models, open_library):
    (models / "b.gguf").hardlink_to(add_model("a.gguf"))
    (models / "c.gguf").symlink_to(models / "b.gguf")
    assert [m.id for m in open_library().models()] == ["a", "b"]


def test_changed_new_and_vanished_files_are_noticed(add_model, open_library):
    path = add_model("a.gguf", general__name="one")
    library = open_library()
    assert library.get("a").facts.name == "one"
    add_model("a.gguf", general__name="another")
    add_model("b.gguf")
    library.refresh()
    assert library.get("a").facts.name == "another"
    assert library.get("b").id == "b"
    path.unlink()
    library.refresh()
    with pytest.raises(NotFoundError):
        library.get("a")


class _CountingFormat(ModelFormat):
    """The builtin format, counting what is read."""

    name = "gguf"

    def __init__(self, version: int = 1) -> None:
        self._inner = builtin_formats()[0]
        self.version = version
        self.read_paths: list[str] = []

    def find(self, folder):
        return self._inner.find(folder)

    def files(self, path):
        return self._inner.files(path)

    def read(self, path):
        self.read_paths.append(path.name)
        return self._inner.read(path)


def _read_by(models, cache, version=1):
    counting = _CountingFormat(version)
    library = Library([counting], [models], cache)
    return counting.read_paths, library.models(), library.problems()


def test_metadata_is_read_once_for_all_processes(add_model, models, tmp_path):
    cache = tmp_path / "cache.sqlite"
    add_model("a.gguf", tokenizer__chat_template="é {{ tools }}")
    (models / "broken.gguf").write_bytes(b"GGUF")
    read, found, problems = _read_by(models, cache)
    assert read == ["a.gguf", "broken.gguf"]
    again, remembered, remembered_problems = _read_by(models, cache)
    assert again == []
    assert remembered == found
    assert [(p.path, p.error.message, p.error.help) for p in remembered_problems] == [
        (p.path, p.error.message, p.error.help) for p in problems
    ]
    assert _read_by(models, cache, version=2)[0] == ["a.gguf", "broken.gguf"], "a new reader reads anew"


def test_a_file_of_the_same_size_and_another_time_is_read_again(add_model, models, tmp_path):
    path = add_model("a.gguf")
    _read_by(models, tmp_path / "c.sqlite")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert _read_by(models, tmp_path / "c.sqlite")[0] == ["a.gguf"]


@pytest.mark.parametrize("damage", ["garbage", "other schema", "bad rows", "folder", "cut"])
def test_a_damaged_cache_is_rebuilt_or_not_used(add_model, models, tmp_path, damage):
    cache = tmp_path / "c.sqlite"
    add_model("a.gguf")
    _read_by(models, cache)
    if damage == "garbage":
        cache.write_bytes(b"no database" * 1000)
    elif damage == "cut":
        cache.write_bytes(cache.read_bytes()[:5000])
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        with sqlite3.connect(cache) as connection:
            if damage == "bad rows":
                connection.execute("UPDATE facts SET facts = '{\"kind\": 7}'")
            else:
                connection.execute("DROP TABLE facts")
                connection.execute("CREATE TABLE facts (x)")
        connection.close()
    read, found, _ = _read_by(models, cache)
    assert read == ["a.gguf"]
    assert [m.id for m in found] == ["a"]
    assert _read_by(models, cache)[0] == (["a.gguf"] if damage == "folder" else [])


def test_rows_of_vanished_models_are_dropped(add_model, models, tmp_path):
    cache = tmp_path / "c.sqlite"
    path = add_model("a.gguf")
    _read_by(models, cache)
    path.unlink()
    _read_by(models, cache)
    connection = sqlite3.connect(cache)
    assert connection.execute("SELECT count(*) FROM facts").fetchone() == (0,)
    connection.close()


def test_processes_may_index_at_once(add_model, models, tmp_path):
    for i in range(30):
        add_model(f"m{i}.gguf")
    code = (
        "import sys; from pathlib import Path; from paceline.formats import builtin_formats; "
        "from paceline.library import Library; "
        "print(len(Library(builtin_formats(), [Path(sys.argv[1])], Path(sys.argv[2])).models()))"
    )
    arguments = [sys.executable, "-c", code, str(models), str(tmp_path / "c.sqlite")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (out.strip(), err) == ("30", "")
    assert _read_by(models, tmp_path / "c.sqlite")[0] == []


class _BrokenFormat(_CountingFormat):
    def read(self, path):
        raise RuntimeError("a plugin's bug")


def test_a_formats_own_bug_costs_only_its_model(add_model, models, tmp_path):
    add_model("a.gguf")
    library = Library([_BrokenFormat()], [models], tmp_path / "c.sqlite")
    assert library.models() == ()
    (problem,) = library.problems()
    assert problem.error.message == f"the format gguf ({__name__}) could not read a.gguf: RuntimeError: a plugin's bug"
    assert "`paceline plugins`" in problem.error.help


def _raise(error):
    raise error


def _half_way(found):
    yield from found
    raise OSError("half way")


@pytest.mark.parametrize(
    ("method", "fault", "said"),
    [
        ("find", lambda found: _raise(RuntimeError("a bug")), "could not search {folder}: RuntimeError: a bug"),
        ("find", lambda found: _raise(SystemExit("bye")), "could not search {folder}: SystemExit: bye"),
        ("find", lambda found: None, "could not search {folder}: TypeError: 'NoneType' object is not iterable"),
        ("find", lambda found: [None], "could not search {folder}: TypeError: "),
        ("find", _half_way, "could not search {folder}: OSError: half way"),
        ("files", lambda found: _raise(KeyError("x")), "could not read a.gguf: KeyError: 'x'"),
        ("files", lambda found: 1, "could not read a.gguf: TypeError: 'int' object is not iterable"),
        ("read", lambda found: _raise(SystemExit()), "could not read a.gguf: SystemExit"),
        ("read", lambda found: None, "could not read a.gguf: it answered None"),
    ],
)
def test_a_formats_own_bug_leaves_the_other_formats(add_model, models, tmp_path, method, fault, said):
    add_model("a.gguf")
    broken = _CountingFormat()
    broken.name = "broken"
    right = getattr(broken, method)
    setattr(broken, method, lambda path: fault(right(path)))

    library = Library([broken, *builtin_formats()], [models], tmp_path / "c.sqlite")

    assert "gguf" in [model.format for model in library.models()]
    (problem,) = library.problems()
    assert said.format(folder=models) in problem.error.message
    assert problem.error.message.startswith(f"the format broken ({__name__}) ")


def test_the_shared_models_have_ids_like_lm_studios(shared, tmp_path):
    library = Library(builtin_formats(), [shared / "models"], tmp_path / "c.sqlite")
    assert [m.id for m in library.models()] == [
        "all-minilm-l6-v2",
        "bad-draft-1m",
        "other-vocab-1m@f16",
        "other-vocab-1m@fp16",
        "paceline-coder-3m@f16",
        "paceline-coder-3m@fp16",
        "paceline-coder-3m@q8_0",
        "paceline-coder-7m@f16",
        "paceline-coder-7m@fp16",
        "paceline-coder-7m@q8_0",
        "weak-draft-1m",
    ]
    assert library.problems() == ()
    with pytest.raises(AmbiguousError):
        library.get("paceline-coder-7m")
    assert library.get("mlx/paceline-coder-7m").format == "mlx"


def test_the_vocabularies_are_problems_not_models(shared, tmp_path):
    library = Library(builtin_formats(), [shared / "vocabs"], tmp_path / "c.sqlite")
    assert library.models() == ()
    assert {p.error.message.split(".gguf ")[1] for p in library.problems()} == {"holds a vocabulary and no weights"}
