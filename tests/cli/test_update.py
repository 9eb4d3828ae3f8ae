"""`paceline runtime update` where something goes wrong: the command, installations and a signed registry are real."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from paceline.registry import publishing, registry_text, signing, trust
from paceline.store import Store
from paceline.types import Requirements


@pytest.fixture
def two(tiny):
    """Two runtimes, each selected for a format of its own; newer ones are there, and the first does not start."""
    gone = {"requires": Requirements(), "platform": "any-other", "formats": ("other",)}
    tiny.offer(tiny.release("1.0"), replace(tiny.release("1.0"), **gone))
    for name in ("tiny-any-cpu", "tiny-any-other"):
        done = tiny.paceline("runtime", "get", name)
        assert done.returncode == 0, done.stderr
    tiny.offer(tiny.release("2.0", crash="yes"), replace(tiny.release("2.0"), **gone))


@pytest.mark.usefixtures("two")
def test_one_update_that_fails_stops_no_other(tiny):
    done = tiny.paceline("runtime", "update", "--registry-only", "--json")

    assert done.returncode == 1
    assert "warning: tiny-any-cpu@1.0 stays: " in done.stderr
    said = json.loads(done.stdout)
    assert said["installed"] == ["tiny-any-other@2.0"]
    (failed,) = said["failed"]
    assert (failed["release"], failed["stays"]) == ("tiny-any-cpu@2.0", "tiny-any-cpu@1.0")
    assert failed["message"].endswith("the worker ended with exit code 1")
    listed = json.loads(tiny.paceline("runtime", "ls", "--json").stdout)
    assert {r["id"]: r["selected_for"] for r in listed if r["selected_for"]} == {
        "tiny-any-cpu@1.0": ["tiny"],
        "tiny-any-other@2.0": ["other"],
    }


def test_a_registry_that_is_verified_bad_is_not_masked_by_updates(tiny, tmp_path, file_server):
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    tiny.offer(tiny.release("2.0"))
    _trust_what_is_forged(tiny, tmp_path, file_server)

    done = tiny.paceline("runtime", "update", "--check", "--json")

    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert [u["release"] for u in said["updates"]] == ["tiny-any-cpu@2.0"]
    assert ("the registry acme", "untrusted") in [(p["source"], p["failure"]) for p in said["problems"]]


def _trust_what_is_forged(tiny, folder, server):
    """Trust a registry whose published timestamp carries signatures of a stranger."""
    for keys in ("keys", "other-keys"):
        for role in publishing.ROLES:
            signing.new_key(folder / keys, role)
        file = folder / "registry.json"
        file.write_text(registry_text([replace(tiny.release("3.0"), requires=Requirements())]))
        publishing.publish(file, folder / keys, folder / f"site-of-{keys}")
    ours, theirs = (folder / f"site-of-{keys}" / "metadata" for keys in ("keys", "other-keys"))
    server.files["/metadata/1.root.json"] = (ours / "1.root.json").read_bytes(), "application/json"
    server.files["/metadata/timestamp.json"] = (theirs / "timestamp.json").read_bytes(), "application/json"
    root = json.loads((ours / "1.root.json").read_bytes())
    trust.remember_trust(trust.make_trusted(tiny.home, server.url, root, "acme"))


def test_what_serves_single_models_alone_is_kept_and_said(tiny):
    tiny.offer(tiny.release("1.0"))
    assert tiny.paceline("runtime", "get", "tiny").returncode == 0
    store = Store(tiny.home)
    runtime = store.get("tiny")
    store.select_for_model(runtime, "robin")
    store.unselect("tiny")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    reason = "it was chosen for robin with `runtime select --model`"

    for query in ([], ["tiny"]):
        done = tiny.paceline("runtime", "update", *query, "--registry-only")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].split(maxsplit=2) == [runtime.id, "stays:", reason]
    request = {"query": None, "check": False, "channel": "stable", "minimum_age_days": 0.0, "registry_only": True}
    request |= {"allow_unpinned": False, "hold_failed": False}
    said = tiny.python("-m", "paceline.manager.errand", json.dumps({"do": "update", "arguments": request}))
    kept = json.loads(said.stdout.splitlines()[-1])["result"]["kept"]
    assert kept == [{"runtime": runtime.id, "reason": reason, "newer": None}]
    store.select(runtime)  # for a format too: then it is updated
    done = tiny.paceline("runtime", "update", "--registry-only", "--check")
    assert (done.returncode, reason in done.stdout) == (100, False)


@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "1e999"])
def test_an_age_is_a_finite_number(tiny, days):
    for command in (("runtime", "update", "--minimum-age"), ("serve", "--update-minimum-age"), ("serve", "--ttl")):
        done = tiny.paceline(*command, days)
        assert done.returncode == 2, done.stderr
        assert "Error: Invalid value for" in done.stderr
    assert tiny.paceline("runtime", "get", "tiny", PACELINE_MINIMUM_RELEASE_AGE=days).returncode == 2
