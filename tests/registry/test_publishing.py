"""Publishing a signed registry: what is signed when, with which keys, and what survives a publisher's death."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tuf.api.metadata import Metadata

from paceline.errors import RegistryError
from paceline.registry import hosting, publishing, signing, trust
from paceline.registry.signed import State, refresh
from paceline.store import transaction


def renew(repository, **options):
    return publishing.renew(repository.keys, repository.site, **options)


def test_roles_expire_as_said(repository):
    now = datetime.now(UTC)
    for role, days in publishing.DAYS.items():
        expires = Metadata.from_file(str(repository.newest(role))).signed.expires
        assert abs(expires - now - timedelta(days=days)) < timedelta(hours=1)


def test_the_same_registry_again_signs_the_timestamp_alone(repository):
    file = repository.folder / "registry.json"
    done = publishing.publish(file, repository.keys, repository.site)
    assert done.signed == ("timestamp",)
    assert done.versions == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 2}


def test_what_is_not_due_is_left_alone(repository):
    before = repository.newest("timestamp").read_bytes()
    assert renew(repository, at_once=False).signed == ()
    assert repository.newest("timestamp").read_bytes() == before


def test_what_has_lived_half_its_time_is_signed_anew(repository):
    done = renew(repository, at_once=False, days={"timestamp": 15, "snapshot": 61})
    assert done.signed == ("snapshot", "timestamp")


def test_keys_that_are_elsewhere_are_said_when_their_time_comes(repository):
    for role in ("root", "targets"):
        (repository.keys / f"{role}.pem").unlink()
    assert renew(repository).warnings == ()

    done = renew(repository, days={"root": 1000, "targets": 1000})
    assert done.signed == ("timestamp",)
    assert [warning.split(" expires")[0] for warning in done.warnings] == [
        "the signature of root",
        "the signature of targets",
    ]


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_new_registry_needs_the_keys_below_the_root(repository, role):
    (repository.keys / f"{role}.pem").unlink()
    signing.new_key(repository.keys, role)  # a key, but not one that the root names
    with pytest.raises(RegistryError, match=f"{role} cannot be signed"):
        repository.publish("9.9")


def test_a_new_repository_needs_every_key(tmp_path, repository):
    (repository.keys / "snapshot.pem").unlink()
    with pytest.raises(RegistryError, match="no key for snapshot"):
        publishing.publish(repository.folder / "registry.json", repository.keys, tmp_path / "new")


def test_a_registry_that_clients_would_refuse_is_not_signed(repository):
    file = repository.folder / "bad.json"
    file.write_text('{"schema_version": 1, "releases": [{}]}')
    with pytest.raises(RegistryError, match="is wrong at"):
        publishing.publish(file, repository.keys, repository.site)
    assert repository.newest("targets").name == "1.targets.json"


def test_keys_are_not_kept_where_everybody_reads(repository):
    with pytest.raises(RegistryError, match="is there to be served"):
        publishing.renew(repository.site / "keys", repository.site)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_who_can_read_what(repository):
    assert {stat.S_IMODE(f.stat().st_mode) for f in repository.keys.iterdir()} == {0o600}
    published = [*repository.metadata.iterdir(), *(repository.site / "targets").iterdir()]
    assert {stat.S_IMODE(f.stat().st_mode) for f in published} == {0o644}


def test_a_key_is_never_replaced_by_accident(repository):
    with pytest.raises(RegistryError, match="exists already"):
        signing.new_keys(repository.keys, publishing.ROLES)


def test_what_is_no_key_is_named(repository):
    (repository.keys / "timestamp.pem").write_text("not a key")
    with pytest.raises(RegistryError, match=r"timestamp\.pem cannot be read as a private key"):
        renew(repository)


def test_a_lost_key_is_replaced_with_the_roots(repository, registry):
    assert refresh(registry).ok
    (repository.keys / "timestamp.pem").unlink()
    done, file = publishing.rotate("timestamp", repository.keys, repository.site)

    assert file.name == "timestamp.pem"
    assert "root" in done.signed
    assert refresh(registry).ok


def test_during_a_change_of_keys_both_roots_verify_what_is_there(repository, registry, monkeypatch):
    """A client may come between any two files."""
    assert refresh(registry).ok
    outcomes = []
    replace_file = transaction.replace_file

    def watched(path, data, **options):
        replace_file(path, data, **options)
        if path.name != "verified.json":
            monkeypatch.setattr(transaction, "replace_file", replace_file)
            outcomes.append((path.name, refresh(registry).state))
            monkeypatch.setattr(transaction, "replace_file", watched)

    monkeypatch.setattr(transaction, "replace_file", watched)
    publishing.rotate("targets", repository.keys, repository.site)
    publishing.rotate("timestamp", repository.keys, repository.site)

    assert len(outcomes) == 8
    assert {state for _, state in outcomes} == {State.UNCHANGED}


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("work", ["publish", "rotate", "found"])
def test_broken_off_at_every_step_clients_see_the_old_or_the_new(repository, registry, web, work, tmp_path, home):
    """What the steps leave is what SIGKILL would leave but for a temporary file that nobody is served."""
    if work == "found":
        repository.site = web.folder = tmp_path / "new"
        repository.metadata = web.folder / "metadata"
        assert not refresh(registry).ok
    step = 0
    while True:
        step += 1
        count = 0

        def observer(name, path, at=step):
            nonlocal count
            count += 1
            if count == at:
                raise _Killed

        try:
            with transaction.observed(observer):
                if work == "rotate":
                    publishing.rotate("targets", repository.keys, repository.site)
                else:
                    repository.publish("1.0", f"1.{step}")
            break
        except _Killed:
            pass
        if work == "found":
            continue
        outcome = refresh(registry)
        assert outcome.ok, (step, outcome)
        known = [release.version for release in trust.verified(registry).releases]
        assert known[0] == "1.0"
        assert len(known) <= 2
    assert step > 15
    text = " ".join((Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8").split())
    said = {"publish": f" the {step - 1} steps of publishing ", "rotate": f" the {step - 1} of changing a key"}
    assert said.get(work, "") in text
    current = trust.make_trusted(home, web.url, repository.root(), "acme")
    assert refresh(current).ok


def test_the_server_serves_what_is_published_and_nothing_else(repository):
    (repository.site / "secret.txt").write_text("no")

    async def ask(path):
        transport = httpx.ASGITransport(app=hosting.app(repository.site))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get(path)).status_code

    paths = ["/metadata/timestamp.json", "/secret.txt", "/.lock", "/metadata/", "/metadata/%2e%2e/secret.txt", "/"]
    assert [asyncio.run(ask(path)) for path in paths] == [200, 404, 404, 404, 404, 404]


def test_there_is_nothing_to_serve(tmp_path):
    with pytest.raises(RegistryError, match="holds no signed registry"):
        hosting.serve(tmp_path, address="127.0.0.1", port=0, tell=print)
    with pytest.raises(RegistryError, match="holds no signed registry"):
        publishing.renew(tmp_path / "keys", tmp_path / "site")


def test_a_server_with_keys_renews_what_is_due(repository, home):
    arguments = ["serve", repository.site, "--keys", repository.keys, "--port", "0", "--days", "timestamp=30"]
    command = [sys.executable, "-m", "paceline", "registry", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = [server.stdout.readline() for _ in range(2)]
            address = said[0].split()[-1]
            registry = trust.make_trusted(home, address, repository.root(), "acme")
            assert refresh(registry).ok
        finally:
            server.terminate()
    assert said[1] == "signed anew: timestamp\n"
    assert trust.verified(registry).expires_at > datetime.now(UTC) + timedelta(days=20)
    assert publishing.renew(repository.keys, repository.site, at_once=False).signed == ()
