"""`paceline runtime` as a user runs it: the real command in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from paceline.store import Store
from paceline.types import Package, Recipe, Requirements

ELSEWHERE = Requirements(os="macos" if sys.platform != "darwin" else "linux")


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_installed(tiny):
    assert "paceline runtime get" in ok(tiny.paceline("runtime", "ls"))
    assert json.loads(ok(tiny.paceline("runtime", "ls", "--json"))) == []
    assert not tiny.home.exists()


def test_get_list_select_remove(tiny):
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))

    got = json.loads(ok(tiny.paceline("runtime", "get", "tiny@1.0", "--json")))
    assert got["id"] == "tiny-any-cpu@1.0"
    assert got["selected_for"] == ["tiny"]
    assert not got["already_installed"]
    out = ok(tiny.paceline("runtime", "get", "tiny"))
    assert "Installed tiny-any-cpu@2.0" in out
    assert "TINY is served by tiny-any-cpu@1.0; select this one: paceline runtime select tiny-any-cpu@2.0" in out

    rows = [line.split() for line in ok(tiny.paceline("runtime", "ls")).splitlines()]
    assert rows[0] == ["LLM", "ENGINE", "SELECTED", "MODEL", "FORMAT", "SIZE", "LAST", "USED", "STATE"]
    assert rows[1][:2] == ["tiny-any-cpu@2.0", "TINY"]
    assert rows[2][:3] == ["tiny-any-cpu@1.0", "✓", "TINY"]
    assert [row[-2:] for row in rows[1:3]] == [["never", "installed"]] * 2
    assert "Would select" in ok(tiny.paceline("runtime", "select", "tiny@2.0", "--dry-run"))
    assert "Selected tiny-any-cpu@2.0 for TINY" in ok(tiny.paceline("runtime", "select", "tiny@2.0"))
    assert "Already selected" in ok(tiny.paceline("runtime", "select", "tiny@2.0"))
    listed = json.loads(ok(tiny.paceline("runtime", "ls", "--json")))
    assert [(r["id"], r["selected_for"]) for r in listed] == [("tiny-any-cpu@2.0", ["tiny"]), ("tiny-any-cpu@1.0", [])]

    refused = tiny.paceline("runtime", "remove", "tiny@2.0")
    assert (refused.returncode, "is selected for tiny" in refused.stderr) == (1, True)
    assert "Would remove tiny-any-cpu@2.0" in ok(tiny.paceline("runtime", "remove", "tiny@2.0", "--force", "--dry-run"))
    assert "Removed tiny-any-cpu@2.0" in ok(tiny.paceline("runtime", "remove", "tiny@2.0", "--force"))
    assert "Removed tiny-any-cpu@1.0" in ok(tiny.paceline("runtime", "remove", "tiny"))
    assert json.loads(ok(tiny.paceline("runtime", "ls", "--json"))) == []


def test_get_tells_its_progress_and_does_nothing_twice(tiny):
    first = tiny.paceline("runtime", "get")
    assert "Installed tiny-any-cpu@1.0.0" in ok(first)
    assert "tinyengine is compiled on this machine, which takes about 1 minute" in first.stderr
    assert "compiling 3/3" in first.stderr
    second = tiny.paceline("runtime", "get")
    assert "tiny-any-cpu@1.0.0 is already installed" in ok(second)
    assert "compil" not in second.stderr


def test_what_is_installed_and_broken_is_planned_and_told_as_made_again(tiny):
    ok(tiny.paceline("runtime", "get"))
    (runtime,) = Store(tiny.home).runtimes()
    (runtime.directory / "env" / "pyvenv.cfg").write_text("x")

    out = ok(tiny.paceline("runtime", "get", "--dry-run"))
    assert f"Would install {runtime.id} again in {runtime.directory}\nWhat is installed there is broken" in out
    assert "tinyengine is compiled on this machine" in out
    plan = json.loads(ok(tiny.paceline("runtime", "get", "--dry-run", "--json")))
    assert (plan["already_installed"], plan["broken"]) == (False, True)
    got = tiny.paceline("runtime", "get")
    assert f"Installed {runtime.id} in " in ok(got)
    assert (
        f"{runtime.id} is installed and broken; it is made again\ntinyengine is compiled on this machine" in got.stderr
    )
    plan = json.loads(ok(tiny.paceline("runtime", "get", "--dry-run", "--json")))
    assert (plan["already_installed"], plan["broken"]) == (True, False)

    tiny.offer(tiny.release(), tiny.release("2.0"))
    newer = json.loads(ok(tiny.paceline("runtime", "get", "tiny@2.0", "--json")))
    (tiny.home / "runtimes" / newer["id"] / "env" / "pyvenv.cfg").write_text("x")
    said = ok(tiny.paceline("runtime", "update", "--dry-run", "--registry-only"))
    assert "would be updated: installed and broken, made again; compiled here, about 1 minute" in said


def test_a_dry_run_changes_nothing(tiny):
    out = ok(tiny.paceline("runtime", "get", "--dry-run"))
    assert "Would install tiny-any-cpu@1.0.0" in out
    assert "tinyengine  1.0.0    source  sha256" in out
    plan = json.loads(ok(tiny.paceline("runtime", "get", "--dry-run", "--json")))
    assert (plan["built"], plan["selects"]) == (["tinyengine"], ["tiny"])
    assert not tiny.home.exists()


def test_release_notes_are_where_people_look(tiny):
    ok(tiny.paceline("runtime", "get", "tiny"))
    new = replace(tiny.release("2.0"), notes="Twice as tiny.")
    tiny.offer(tiny.release(), new)

    assert "Twice" not in ok(tiny.paceline("runtime", "get", "--list"))
    listed = ok(tiny.paceline("runtime", "get", "--list", "-v")).splitlines()
    assert listed[-2:] == ["", f"{new.id}: Twice as tiny."]
    assert listed[0].split() == ["NAME", "VERSION", "STATE", "SOURCE", "FEATURES", "VERDICT"]
    assert "engine tiny  generate  compatible" in listed[1]
    assert "\nTwice as tiny.\n" in ok(tiny.paceline("runtime", "get", "tiny@2.0", "--dry-run"))
    plan = json.loads(ok(tiny.paceline("runtime", "get", "tiny@2.0", "--dry-run", "--json")))
    assert plan["notes"] == "Twice as tiny."
    update = ["runtime", "update", "--dry-run", "--registry-only"]
    assert ok(tiny.paceline(*update)).endswith(
        f"would be updated: compiled here, about 1 minute\n\n{new.id}: Twice as tiny.\n"
    )
    (found,) = json.loads(ok(tiny.paceline(*update, "--json")))["updates"]
    assert (found["release"], found["notes"]) == (new.id, "Twice as tiny.")


def test_channel_and_wheels_as_asked(tiny):
    (dependency, _) = tiny.release().recipe.packages
    wheel = replace(tiny.release("1.0"), platform="any-wheel", rank=-1, recipe=Recipe((dependency,)))
    tiny.offer(tiny.release("1.0"), replace(tiny.release("2.0"), channel="beta", rank=9), wheel)

    def planned(*options, **variables):
        done = tiny.paceline("runtime", "get", "--dry-run", "--json", *options, **variables)
        return json.loads(ok(done))["release"]

    assert planned() == "tiny-any-cpu@1.0"
    assert planned("--channel", "nightly") == planned(PACELINE_UPDATE_CHANNEL="beta") == "tiny-any-cpu@2.0"
    assert planned("--prefer", "wheel") == planned(PACELINE_PREFER="wheel") == "tiny-any-wheel@1.0"


def test_the_first_runtime_is_chosen_by_the_same_policy(tiny):
    """As `paceline demo` installs it, which needs models besides."""
    (dependency, _) = tiny.release().recipe.packages
    wheel = replace(tiny.release("1.0"), platform="any-wheel", rank=-1, recipe=Recipe((dependency,)))
    tiny.offer(wheel, *(tiny.release(v) for v in ("1.0", "1.1")), replace(tiny.release("2.0"), channel="beta"))
    Store(tiny.home).hold("tiny-any-cpu@1.1", "it crashes")
    code = (
        "import sys; from paceline import paths, plugins; from paceline.cli.getting import install_best; "
        "from paceline.preferences import Policy; from paceline.store import Store; "
        "print(install_best(plugins.load(), Store(paths.home()), 'tiny', eval(sys.argv[1])).id)"
    )

    first = tiny.python("-c", code, "Policy()")
    assert ok(first) == "tiny-any-cpu@1.0\n"
    assert "tiny-any-cpu@1.1 is held and was passed over" in first.stderr
    assert ok(tiny.python("-c", code, "Policy(channel='beta')")) == "tiny-any-cpu@2.0\n"
    # The wheel is taken, and has no engine in it.
    assert "SmokeTestError" in tiny.python("-c", code, "Policy(prefer='wheel')").stderr
    options = ok(tiny.paceline("demo", "--help"))
    assert all(option in options for option in ("--channel", "--minimum-age", "--prefer", "--allow-unpinned"))


def test_what_is_available_has_a_verdict(tiny):
    tiny.offer(tiny.release("1.0"), replace(tiny.release("2.0"), requires=ELSEWHERE))
    ok(tiny.paceline("runtime", "get"))

    rows = ok(tiny.paceline("runtime", "get", "--list")).splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [
        ["tiny-any-cpu", "1.0", "installed"],
        ["tiny-any-cpu", "2.0", "available"],
    ]
    assert rows[1].endswith("engine tiny  compatible, built here")
    assert "engine tiny  incompatiblePlatform: needs" in rows[2]
    listed = json.loads(ok(tiny.paceline("runtime", "get", "tiny@2.0", "--list", "--json")))
    assert [(r["id"], r["installed"], r["source"], r["verdict"]["status"]) for r in listed] == [
        ("tiny-any-cpu@2.0", False, "engine tiny", "incompatiblePlatform")
    ]


def test_the_exit_code_says_what_went_wrong(tiny):
    tiny.offer(tiny.release("1.0", fail="yes"), replace(tiny.release("2.0"), requires=ELSEWHERE))

    assert tiny.paceline("runtime", "get", "nothing").returncode == 3
    assert tiny.paceline("runtime", "select", "tiny").returncode == 3
    elsewhere = tiny.paceline("runtime", "get", "tiny@2.0")
    assert elsewhere.returncode == 3
    assert "needs" in elsewhere.stderr
    assert "help: " in elsewhere.stderr
    assert tiny.paceline("runtime", "get", "tiny:").returncode == 2
    assert tiny.paceline("runtime", "get", "--nonsense").returncode == 2
    failed = tiny.paceline("runtime", "get", "tiny@1.0")
    assert failed.returncode == 1
    assert "the sky is not blue" in failed.stderr
    assert "Traceback" not in failed.stderr
    ok(tiny.paceline("runtime", "get", "tiny@2.0", "--allow-incompatible"))
    assert "3 nothing matches" in " ".join(ok(tiny.paceline("runtime", "get", "--help")).split())


def test_unpinned_packages_are_asked_for(tiny):
    release = tiny.release()
    package = Package("tinyengine", "1.0.0", index=tiny.simple_index())
    packages = (release.recipe.packages[0], package)
    tiny.offer(replace(release, recipe=replace(release.recipe, packages=packages, build_packages=())))

    refused = tiny.paceline("runtime", "get")
    assert refused.returncode == 1
    assert "no hashes are published for tinyengine 1.0.0" in refused.stderr
    assert "--allow-unpinned" in refused.stderr
    assert "needs --allow-unpinned" in ok(tiny.paceline("runtime", "get", "--list"))
    assert "Installed" in ok(tiny.paceline("runtime", "get", "--allow-unpinned", PIP_NO_INDEX="0"))


def test_what_is_held_is_installed_by_its_name_and_not_selected(tiny):
    Store(tiny.home).hold("tiny-any-cpu@1.0.0", "it crashes")
    assert "Would select it for no format" in ok(tiny.paceline("runtime", "get", "tiny@1.0.0", "--dry-run"))
    out = ok(tiny.paceline("runtime", "get", "tiny@1.0.0"))
    assert "Not selected for TINY, as it is held: paceline runtime select tiny-any-cpu@1.0.0\n" in out


def test_the_survey_shows_facts_with_sources_and_a_verdict_per_release(tiny):
    tiny.offer(tiny.release("1.0"), replace(tiny.release("2.0"), requires=Requirements(min_host="99")))
    variables = {"PACELINE_OVERRIDE_CPU_NAME": "Difference Engine"}

    out = ok(tiny.paceline("runtime", "survey", **variables))
    assert "Difference Engine" in out
    assert "PACELINE_OVERRIDE_CPU_NAME" in out
    assert any(line.split()[:2] == ["tiny-any-cpu@1.0", "compatible"] for line in out.splitlines())
    data = json.loads(ok(tiny.paceline("runtime", "survey", "--json", **variables)))
    assert data["facts"]["cpu_name"]["value"] == "Difference Engine"
    assert {r["release"]: r["status"] for r in data["releases"]} == {
        "tiny-any-cpu@1.0": "compatible",
        "tiny-any-cpu@2.0": "incompatibleAppVersion",
    }


def test_the_survey_asks_the_installed_engine_once_and_again_on_demand(tiny):
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    assert tiny.paceline("runtime", "get", "tiny@1.0").returncode == 0
    first = json.loads(ok(tiny.paceline("runtime", "survey", "--json")))["runtimes"]
    again = json.loads(ok(tiny.paceline("runtime", "survey", "--json")))["runtimes"]

    assert first == [
        {
            "runtime": "tiny-any-cpu@1.0",
            "devices": ["CPU (cpu)"],
            "problem": None,
            "source": "the runtime's worker",
        }
    ]
    assert again[0]["devices"] == ["CPU (cpu)"]
    assert ", asked 20" in again[0]["source"]

    # Its worker breaks: what is remembered does not know, who asks anew is told.
    for file in (tiny.home / "runtimes" / "tiny-any-cpu@1.0" / "env").rglob("settings.json"):
        file.unlink()
        file.write_text('{"crash": "yes"}')
    out = ok(tiny.paceline("runtime", "survey", "tiny@1.0", "--refresh"))
    assert "the runtime does not work here" in out
    assert "tiny-any-cpu@2.0" not in out
    assert tiny.paceline("runtime", "survey", "tony").returncode == 3


@pytest.mark.runtime
def test_the_real_runtime_is_installed_and_selected(llama_cpp_home, llama_cpp_runtime, tiny):
    variables = {"PACELINE_HOME": str(llama_cpp_home), "PACELINE_PLUGINS": "llama-cpp"}
    (listed,) = json.loads(ok(tiny.paceline("runtime", "ls", "--json", **variables)))

    assert listed["id"] == llama_cpp_runtime.id
    assert (listed["engine"], listed["selected_for"]) == ("llama.cpp", ["gguf"])
    manifest = json.loads((llama_cpp_runtime.directory / "manifest.json").read_text())
    assert manifest["unpinned"] == []
    assert [d["kind"] for d in manifest["smoke_test"]["devices"]] == ["cpu"]
    (packages,) = llama_cpp_runtime.directory.glob("env/lib/python*/site-packages")
    assert list(packages.glob("llama_cpp/lib/*llama*"))
    assert not (packages / "lib").exists()
