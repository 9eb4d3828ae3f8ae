from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from paceline.manager.updates import plan_updates, withdrawn_since
from paceline.types import Compatibility, Package, Recipe, Release, Requirements, Runtime, Verdict

FITS = Verdict(Compatibility.COMPATIBLE, "runs here")
TOO_OLD = Verdict(Compatibility.GPU_DRIVER_UNSUPPORTED, "driver 550 is older than 580")


def runtime(version, name="cpu"):
    return Runtime("e", version, name, ("gguf", "mlx"), (), Path("/r"), Path("/r/python"))


def release(version, name="cpu", channel="stable", pinned=True, formats=("gguf", "mlx")):
    package = Package("p", version, ("a" * 64,) if pinned else ())
    return Release("e", version, name, formats, Requirements(), Recipe((package,)), channel)


def plan(releases, selected=None, **options):
    ranked = [pair if isinstance(pair, tuple) else (pair, FITS) for pair in releases]
    return plan_updates({"gguf": runtime("1.0")} if selected is None else selected, ranked, **options)


def test_the_newest_of_the_same_name_replaces_it():
    (update,), kept = plan([release("1.9"), release("1.10"), release("3.0", name="cuda"), release("0.9")])
    assert (update.runtime.id, update.release.id, update.formats) == ("e-cpu@1.0", "e-cpu@1.10", ("gguf",))
    assert kept == ()


def test_a_runtime_that_serves_two_formats_is_updated_once():
    (update,), _ = plan([release("2.0")], {"gguf": runtime("1.0"), "mlx": runtime("1.0")})
    assert update.formats == ("gguf", "mlx")


def test_a_format_that_a_release_dropped_is_served_by_the_newest_that_has_it():
    both = {"gguf": runtime("1.0"), "mlx": runtime("1.0")}
    dropped = release("2.0", formats=("gguf",))

    updates, kept = plan([dropped, release("1.5")], both)
    assert [(u.release.version, u.formats) for u in updates] == [("2.0", ("gguf",)), ("1.5", ("mlx",))]
    assert kept == ()

    updates, (stays,) = plan([dropped], both)
    assert [(u.release.version, u.formats) for u in updates] == [("2.0", ("gguf",))]
    assert (stays.reason, stays.newer) == ("2.0 is newer, but does not serve MLX", dropped)

    updates, kept = plan([dropped], {"gguf": runtime("2.0"), "mlx": runtime("1.0")})
    assert updates == ()
    assert [k.reason for k in kept] == ["it is the newest", "2.0 is newer, but does not serve MLX"]


def test_what_was_chosen_for_single_models_stays_and_is_named():
    chosen = runtime("1.0")
    updates, (kept,) = plan([release("2.0")], {}, of_models={"m": chosen, "a": chosen})
    assert updates == ()
    assert (kept.reason, kept.newer) == ("2.0 is newer, but this one was chosen for a, m alone", release("2.0"))
    _, (kept,) = plan([], {}, of_models={"m": chosen})
    assert (kept.reason, kept.newer) == ("this one was chosen for m alone", None)
    (update,), kept = plan([release("2.0")], {"gguf": chosen}, of_models={"m": chosen})  # which serves a format, too
    assert (update.formats, kept) == (("gguf",), ())


@pytest.mark.parametrize(
    ("newer", "options", "reason"),
    [
        (release("2.0", channel="beta"), {}, "2.0 is newer, but it is of the beta channel"),
        (release("2.0"), {"held": {"e-cpu@2.0"}}, "2.0 is newer, but it is held back"),
        (release("2.0"), {"withdrawn": {"e-cpu@2.0"}}, "2.0 is newer, but the package index no longer offers it"),
        ((release("2.0"), TOO_OLD), {}, "2.0 is newer, but driver 550 is older than 580"),
        (release("2.0", pinned=False), {}, "2.0 is newer, but no hashes are published for its packages"),
        (release("2.0"), {"pinned": {"e-cpu@1.0"}}, "2.0 is newer, but this one is pinned"),
        (release("1.0"), {}, "it is the newest"),
    ],
)
def test_why_a_runtime_stays(newer, options, reason):
    updates, (kept,) = plan([newer], **options)
    assert updates == ()
    assert kept.reason == reason


def test_what_the_index_would_have_answered_and_did_not_is_withdrawn():
    here = replace(release("1.3"), requires=Requirements(python="==3.12.*"))
    elsewhere = replace(release("1.4"), requires=Requirements(python="==3.13.*"))
    recent = replace(release("1.5"), published="2030-06-01T00:00:00+00:00")
    beta, held = release("2.0b1", channel="beta"), release("1.6")
    found = [release("1.0"), release("1.1"), release("1.2"), here, elsewhere, recent, held, beta]
    asked = {"python": "3.12", "held": {held.id}, "published_until": datetime(2030, 5, 1, tzinfo=UTC)}

    assert withdrawn_since(found, "1.1", **asked) == (release("1.2"), here)
    assert withdrawn_since(found, "1.1", **asked, channel="beta") == (release("1.2"), here, beta)
    assert withdrawn_since(found, "1.9", **asked) == ()
    assert withdrawn_since([recent], "1.1", python="3.12") == (recent,)


def test_what_is_refused_gives_way_to_the_next():
    (update,), _ = plan([release("2.0", channel="beta"), (release("1.5"), TOO_OLD), release("1.2")])
    assert update.release.version == "1.2"
    (update,), _ = plan([release("2.0", channel="beta"), release("1.2")], channel="beta")
    assert update.release.version == "2.0"
    (update,), _ = plan([release("2.0", channel="nightly"), release("1.2")], channel="nightly")
    assert update.release.version == "2.0"
