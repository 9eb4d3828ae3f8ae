"""Bundles with wheels whose page publishes no hashes: for machines of other kinds, for this one, and attacked."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import replace

import pytest

from paceline.errors import ArchiveError, DownloadError, UnpinnedError
from paceline.manager.bundles import CONTENTS, create, read_bundle
from paceline.manager.installation import install
from paceline.packages import first_use, indexes
from paceline.packages.download import Patience, download
from paceline.plugins import Plugins
from paceline.progress import silent
from paceline.registry import load_registry
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
WINDOWS = Requirements(os="windows", arch="x86_64")
FAR = [f"tinyengine-1.0.0-cp3{n}-cp3{n}-{tag}.whl" for n in (12, 13) for tag in ("win_amd64", "win_arm64")]
HERE = "tinyengine-1.0.0-py3-none-any.whl"
FOR_WINDOWS = ["--platform", "windows-cuda", "--python", "3.12"]


@pytest.fixture
def page(tiny, file_server, tmp_path, monkeypatch):
    """A function that puts wheels on a page that says nothing but their names; returns the sha256 of each."""

    def put(*names, note="first", at="cuda"):
        hashes = []
        for name in names:
            files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}"}
            tiny.write_wheel(tmp_path / name, "tinyengine", files | {"tinyengine/note": (at + note + name) * 10_000})
            content = (tmp_path / name).read_bytes()
            file_server.files[f"/{at}/files/{name}"] = content, "application/zip"
            hashes.append(hashlib.sha256(content).hexdigest())
        listed = [path for path in file_server.files if path.startswith(f"/{at}/files/")]
        links = "".join(f'<a href="{path}">{path}</a>' for path in listed)
        file_server.files[f"/{at}/tinyengine/"] = links.encode(), "text/html"
        return hashes

    file_server.faulty = "/cuda/files/"
    for variable in ("PIP_NO_INDEX", "UV_FIND_LINKS"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    quick = Patience(stall_s=0.5, attempts=2, backoff_s=0.01)
    monkeypatch.setattr(indexes, "download", lambda *a, **k: download(*a, **{"patience": quick, **k}))
    return put


@pytest.fixture
def far(tiny, file_server):
    """A release for Windows whose engine is on that page."""
    package = Package("tinyengine", "1.0.0", index=f"{file_server.url}/cuda")
    return replace(tiny.release(), platform="windows-cuda", requires=WINDOWS, recipe=Recipe((package,)))


@pytest.fixture
def near(far):
    """The same for this machine."""
    return replace(far, platform="any-cuda", requires=Requirements())


@pytest.fixture
def make(tiny, tmp_path):
    """Makes a bundle, with the acceptance of what has no hash."""

    def run(*releases, pythons=("3.12",), name="made.bundle", accepted=True):
        ids = [release.id for release in releases] if accepted else []
        place = tmp_path / name, pythons, tmp_path / "maker"
        return create(releases, *place, silent, store=Store(tiny.home), accepted=ids)

    return run


def recorded(tiny):
    file = first_use.record_file(tiny.home)
    entries = json.loads(file.read_bytes())["packages"] if file.exists() else {}
    return {key.partition(" for ")[2]: entry["sha256"] for key, entry in entries.items()}


def test_without_acceptance_nothing_is_fetched(tiny, file_server, page, far, make, tmp_path):
    page(*FAR)
    with pytest.raises(UnpinnedError, match=r"tinyengine 1\.0\.0 from .*/cuda, where no hashes") as caught:
        make(far, accepted=False)
    assert "--allow-unpinned" in caught.value.help
    assert (file_server.asked, recorded(tiny)) == ([], {})
    assert not (tmp_path / "made.bundle").exists()


def test_each_python_has_the_wheel_of_that_platform(tiny, page, far, make):
    """By their tags; they are recorded as that platform's, and the bundle says that nobody published their hashes."""
    hashes = page(*FAR, HERE)
    made = make(far, pythons=("3.12", "3.13"))
    assert [f.name for f in made.listed] == [FAR[0], FAR[2]]
    assert [f.sha256 for f in made.listed] == [hashes[0], hashes[2]]
    assert recorded(tiny) == {
        "Python 3.12 on windows x86_64": [hashes[0]],
        "Python 3.13 on windows x86_64": [hashes[2]],
    }
    assert made.releases[0].recipe == far.recipe
    assert [p.name for p in made.releases[0].recipe.unpinned] == ["tinyengine"]


def test_what_is_recorded_needs_no_acceptance_and_gives_the_same_bytes(tiny, page, far, make):
    page(*FAR)
    first = make(far).path.read_bytes()
    assert make(far, name="again.bundle", accepted=False).path.read_bytes() == first
    with pytest.raises(UnpinnedError):
        make(far, pythons=("3.12", "3.13"), accepted=False)


def test_the_record_of_one_platform_pins_no_other(tiny, page, far, near, make):
    hashes = page(*FAR, HERE)
    make(far)
    with pytest.raises(UnpinnedError):
        install(near, Store(tiny.home), tiny.engine)
    install(near, Store(tiny.home), tiny.engine, allow_unpinned=True)
    assert recorded(tiny) == {"Python 3.12 on windows x86_64": [hashes[0]], first_use.place(): [hashes[-1]]}
    assert [f.name for f in make(far, accepted=False).listed] == [FAR[0]]


def test_what_is_recorded_here_pins_no_other_platform_in_lists(tiny, page, far, near):
    page(*FAR, HERE)
    tiny.offer(far, near)
    install(near, Store(tiny.home), tiny.engine, allow_unpinned=True)
    known = load_registry(Plugins((), {"tiny": tiny.engine}), home=tiny.home)
    assert {r.id: len(r.recipe.unpinned) for r in known.releases} == {near.id: 0, far.id: 1}


@pytest.mark.parametrize("names", [FAR[1:], [FAR[0].replace("1.0.0", "1.0.1")], [HERE.replace("py3", "cp27")]])
def test_a_page_with_wheels_for_others_only(tiny, page, far, make, names):
    page(*names)
    said = r"/cuda/tinyengine/ has no wheel of tinyengine 1\.0\.0 for Python 3\.12 on windows x86_64"
    with pytest.raises(DownloadError, match=said):
        make(far)
    assert recorded(tiny) == {}


def test_what_breaks_off_is_not_recorded_and_goes_on(tiny, file_server, page, far, make, tmp_path):
    (sha256,) = page(FAR[0])
    file_server.misbehave({"truncate": 100_000}, {"status": 503})
    with pytest.raises(DownloadError, match=r"tinyengine 1\.0\.0 cannot be fetched from .*/cuda: .*503"):
        make(far)
    assert (recorded(tiny), (tmp_path / "made.bundle").exists()) == ({}, False)
    file_server.headers.clear()
    assert [f.sha256 for f in make(far).listed] == [sha256]
    assert [headers["range"] for headers in file_server.headers if "range" in headers] == ["bytes=100000-"]


def test_a_damaged_wheel_is_not_bundled(tiny, file_server, page, far, make):
    page(FAR[0])
    file_server.misbehave_always(flip=100_000)
    with pytest.raises(ArchiveError, match="it is damaged"):
        make(far)
    assert recorded(tiny) == {}


@pytest.mark.parametrize("note", ["other", "longer than before"])
def test_another_file_than_the_recorded_one_is_refused(tiny, page, far, make, tmp_path, note):
    page(FAR[0], note="first")
    make(far)
    before = recorded(tiny)
    page(FAR[0], note=note)
    with pytest.raises(DownloadError, match=r"bytes instead of|sha256") as caught:
        make(far, name="again.bundle")
    assert "required is what was first used here: tinyengine 1.0.0 (" in caught.value.help
    assert str(first_use.record_file(tiny.home)) in caught.value.help
    assert (recorded(tiny), (tmp_path / "again.bundle").exists()) == (before, False)


def test_hashes_that_a_registry_knows_are_required(tiny, page, far, make):
    """Of every Python's wheel, as registries lock them: which is which, the page does not say."""
    hashes = page(*FAR)
    (package,) = far.recipe.packages
    pinned = replace(far, recipe=Recipe((replace(package, sha256=tuple(sorted(hashes))),)))
    made = make(pinned, accepted=False)
    assert ([f.sha256 for f in made.listed], recorded(tiny)) == ([hashes[0]], {})
    wrong = replace(far, recipe=Recipe((replace(package, sha256=("0" * 64, "1" * 64)),)))
    with pytest.raises(DownloadError, match=f"has the sha256 {hashes[0]}, not {'0' * 64} or {'1' * 64}"):
        make(wrong, accepted=False)


def test_pages_that_call_different_files_by_one_name(tiny, file_server, page, near, make, tmp_path):
    """As those for each kind of GPU do; each release is installed with its own."""
    hashes = page(HERE), page(HERE, at="cpu")
    package = replace(near.recipe.packages[0], index=f"{file_server.url}/cpu")
    other = replace(near, platform="any-cpu", recipe=Recipe((package,)))
    made = make(near, other, pythons=(PYTHON,))
    assert len(made.listed) == 2
    store = Store(tmp_path / "other")
    for release, (sha256,) in zip((near, other), hashes, strict=True):
        runtime = install(release, store, tiny.engine, allow_unpinned=True, supply=made)
        assert store.manifest(runtime)["lock"][0]["sha256"] == [sha256]
        assert store.manifest(runtime)["unpinned"] == ["tinyengine"]


class TestInstalled:
    @pytest.fixture
    def made(self, page, near, make):
        page(HERE)
        return make(near, pythons=(PYTHON,))

    @pytest.fixture
    def other(self, tiny, tmp_path):
        """Runs `paceline bundle` as on another machine."""
        place = {"PACELINE_HOME": str(tmp_path / "other"), "PACELINE_CACHE": str(tmp_path / "others")}
        return lambda *arguments: tiny.paceline("bundle", *map(str, arguments), **place)

    def test_it_is_asked_for_and_recorded_as_elsewhere(
        self, tiny, file_server, page, near, make, made, other, tmp_path
    ):
        file_server.asked.clear()
        assert "needs --allow-unpinned" in other("ls", made.path).stdout
        assert json.loads(other("ls", made.path, "--json").stdout)["releases"][0]["unpinned"] == ["tinyengine"]
        refused = other("install", made.path)
        assert (refused.returncode, "takes tinyengine 1.0.0 from" in refused.stderr) == (1, True), refused.stderr
        assert not Store(tmp_path / "other").runtimes()
        done = other("install", made.path, "--allow-unpinned")
        assert done.returncode == 0, done.stderr
        (runtime,) = Store(tmp_path / "other").runtimes()
        assert Store(tmp_path / "other").manifest(runtime)["unpinned"] == ["tinyengine"]
        Store(tmp_path / "other").remove(runtime, force=True)
        assert other("install", made.path).returncode == 0  # it is known by now
        assert file_server.asked == []

        first_use.record_file(tiny.home).unlink()
        page(HERE, note="second")
        second = make(replace(near, version="2"), pythons=(PYTHON,), name="second.bundle")
        done = other("install", second.path, "--allow-unpinned")
        assert done.returncode == 1
        assert "has another tinyengine 1.0.0: its sha256 is" in done.stderr
        assert "required is what was first used here: tinyengine 1.0.0 (" in done.stderr

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda value: value.pop("unhashed"), "it has no wheel of tinyengine 1.0.0 for this Python and machine"),
            (lambda value: value["unhashed"][0].update(index="https://x"), "it has no wheel of tinyengine 1.0.0"),
            (lambda value: value["unhashed"][0].update(sha256=["0" * 64]), "it has no wheel of tinyengine 1.0.0"),
            (lambda value: value["unhashed"][0].update(sha256=[7]), "is wrong"),
            (lambda value: value["unhashed"][0].pop("name"), "is wrong"),
            (lambda value: value.update(unhashed=7), "is wrong"),
        ],
    )
    def test_contents_that_do_not_say_which_file_it_is(self, tiny, made, near, tmp_path, change, said):
        path = tmp_path / "broken.bundle"
        with zipfile.ZipFile(made.path) as old, zipfile.ZipFile(path, "w") as new:
            value = json.loads(old.read(CONTENTS))
            change(value)
            new.writestr(zipfile.ZipInfo(CONTENTS), json.dumps(value))
            for entry in old.infolist():
                if entry.filename != CONTENTS:
                    new.writestr(entry, old.read(entry))
        store = Store(tmp_path / "other")
        with pytest.raises(ArchiveError, match=said):
            install(near, store, tiny.engine, allow_unpinned=True, supply=read_bundle(path))
        assert not store.runtimes()


class TestTheCommand:
    @pytest.fixture
    def run(self, tiny, file_server, tmp_path):
        web = {"PIP_NO_INDEX": "", "UV_FIND_LINKS": "", "UV_DEFAULT_INDEX": file_server.index}
        command = ["bundle", "create", "-o", str(tmp_path / "made.bundle")]

        def bundle(*arguments, typed=None):
            if typed is not None:
                return tiny.at_a_terminal(typed, *command, *arguments, **web)
            done = tiny.paceline(*command, *arguments, **web)
            return done.returncode, done.stdout + done.stderr

        return bundle

    def test_it_asks_or_wants_to_be_told(self, tiny, page, far, run):
        hashes = page(*FAR)
        tiny.offer(far)
        status, said = run("tiny", *FOR_WINDOWS)
        assert (status, "no hashes are published for tinyengine 1.0.0" in said) == (1, True), said
        assert "accept that with --allow-unpinned" in said
        status, said = run("tiny", *FOR_WINDOWS, typed="n\n")
        assert (status, "Fetch it, and require the same files from then on?" in said) == (1, True), said
        assert recorded(tiny) == {}
        status, said = run("tiny", *FOR_WINDOWS, "--allow-unpinned")
        assert (status, "Recorded what tinyengine is there" in said) == (0, True), said
        assert recorded(tiny) == {"Python 3.12 on windows x86_64": [hashes[0]]}
        assert run("tiny", *FOR_WINDOWS)[0] == 0
        status, said = run("tiny", *FOR_WINDOWS, "--python", "3.13", typed="y\n")
        assert (status, "Recorded what tinyengine is there" in said) == (0, True), said

    def test_a_runtime_that_nothing_lists_is_marked_as_it_was(self, tiny, page, near, run, tmp_path):
        """Its manifest knows the hash; that it came from a first use has to be said where it goes, too."""
        other = f"3.{sys.version_info[1] + 1}"
        page(HERE)
        install(near, Store(tiny.home), tiny.engine, allow_unpinned=True)
        tiny.offer(replace(near, version="2"))
        assert run("tiny@1.0.0")[0] == 0
        (made,) = read_bundle(tmp_path / "made.bundle").releases
        assert [p.name for p in made.recipe.unpinned] == ["tinyengine"]
        status, said = run("tiny@1.0.0", "--python", PYTHON, "--python", other)
        assert (status, "takes tinyengine 1.0.0 from" in said) == (1, True), said
        assert run("tiny@1.0.0", "--python", PYTHON, "--python", other, "--allow-unpinned")[0] == 0

    def test_a_pinned_release_is_rather_taken(self, tiny, page, far, file_server, run, tmp_path):
        page(*FAR)
        tiny.write_wheel(tmp_path / HERE, "tinyengine", {"tinyengine/x.py": ""})
        file_server.add_file(HERE, (tmp_path / HERE).read_bytes())
        file_server.publish("tinyengine", {HERE: "2030-01-01"})
        package = Package("tinyengine", "1.0.0", (file_server.sha256(HERE),))
        tiny.offer(replace(far, version="2"), replace(far, recipe=Recipe((package,))))
        status, said = run("tiny", *FOR_WINDOWS)
        assert (status, "tiny-windows-cuda@1.0.0" in said) == (0, True), said
        assert "tiny-windows-cuda@2 would rank higher, but its packages have no published hashes" in said
