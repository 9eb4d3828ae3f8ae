"""The client of signed registries against honest, broken and hostile ones, over real HTTP."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from paceline.errors import RegistryError
from paceline.registry import publishing, signed, signing, trust
from paceline.registry.signed import Reason, State, refresh

BREAKER = Path(__file__).with_name("breaker.py")
RELIABILITY = " ".join((Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8").split())


def versions(registry):
    known = trust.verified(registry)
    return [] if known is None else [release.version for release in known.releases]


@pytest.fixture
def verified(registry):
    """The registry, verified once; version 1.0 is known."""
    assert refresh(registry).state is State.UPDATED
    assert versions(registry) == ["1.0"]
    return registry


@pytest.fixture
def refused(verified):
    """Asserts that a refresh is refused for a reason, and that version 1.0 stays in use."""

    def check(reason, **options):
        outcome = refresh(verified, **options)
        assert (outcome.state, outcome.reason) == (State.REFUSED, reason), outcome.message
        assert "stays in use until" in outcome.message
        assert outcome.help
        assert ("this machine's clock says" in outcome.message) == (reason is Reason.EXPIRED)
        assert versions(verified) == ["1.0"]

    return check


@pytest.fixture
def unverified(verified):
    """Asserts that a refresh could verify nothing, for a reason, and that version 1.0 stays in use."""

    def check(reason, **options):
        outcome = refresh(verified, **options)
        assert (outcome.state, outcome.reason) == (State.CANNOT_VERIFY, reason), outcome.message
        assert "stays in use until" in outcome.message
        assert versions(verified) == ["1.0"]

    return check


class TestAnHonestRegistry:
    def test_brings_its_releases_and_then_only_what_is_new(self, repository, web, verified):
        web.asked.clear()
        assert refresh(verified).state is State.UNCHANGED
        assert [path for path in web.asked if "registry.json" in path] == []

        repository.publish("1.0", "1.1")
        assert refresh(verified).state is State.UPDATED
        assert versions(verified) == ["1.0", "1.1"]

    def test_is_valid_until_the_first_signature_ends(self, repository, verified):
        known = trust.verified(verified)
        ends = Metadata.from_file(str(repository.newest("timestamp"))).signed.expires
        assert known.expires_at == ends
        assert not known.expired(ends - timedelta(seconds=1))
        assert known.expired(ends)

    @pytest.mark.parametrize("role", publishing.ROLES)
    def test_changes_a_key(self, repository, verified, role):
        publishing.rotate(role, repository.keys, repository.site)
        repository.publish("2.0")

        assert refresh(verified).state is State.UPDATED
        assert versions(verified) == ["2.0"]

    def test_changes_every_key_twice_while_nobody_looks(self, repository, verified):
        for role in (*publishing.ROLES, *publishing.ROLES):
            publishing.rotate(role, repository.keys, repository.site)
        repository.publish("2.0")

        assert refresh(verified).state is State.UPDATED
        assert versions(verified) == ["2.0"]

    def test_may_move_behind_a_redirect(self, repository, web, verified):
        (repository.site / "moved").mkdir()
        for file in repository.metadata.iterdir():
            shutil.copy(file, repository.site / "moved" / file.name)

        def moved(handler):
            handler.send_response(302)
            handler.send_header("Location", "/moved/timestamp.json")
            handler.end_headers()

        web.answers["/metadata/timestamp.json"] = moved
        assert refresh(verified).state is State.UNCHANGED

    def test_that_is_damaged_here_is_fetched_again(self, verified):
        (verified.folder / "verified.json").write_text("{")
        with pytest.raises(RegistryError, match="cannot be read"):
            trust.verified(verified)
        for file in (verified.folder / "metadata").glob("*.json"):
            if not file.is_symlink():
                file.write_text("{")

        assert refresh(verified).state is State.UPDATED
        assert versions(verified) == ["1.0"]


def older(repository, role):
    """What the repository has of a role now, for later."""
    return repository.newest(role).read_bytes()


class TestRollback:
    def test_an_older_timestamp(self, repository, verified, refused):
        before = older(repository, "timestamp")
        repository.publish("1.0")
        assert refresh(verified).state is State.UNCHANGED
        repository.newest("timestamp").write_bytes(before)

        refused(Reason.WRONG_VERSION)

    def test_an_older_snapshot_in_a_new_timestamp(self, repository, verified, refused):
        before = repository.newest("snapshot").read_bytes()
        repository.publish("1.0", "1.1")
        repository.publish("1.0")
        assert refresh(verified).ok

        def announce(timestamp):
            timestamp.version += 1
            timestamp.snapshot_meta = repository.meta_file(before)

        repository.forge("timestamp", announce)
        refused(Reason.WRONG_VERSION)

    def test_older_targets_in_a_new_snapshot(self, repository, verified, refused):
        repository.publish("1.0", "1.1")
        repository.publish("1.0")
        assert refresh(verified).ok
        for number in (2, 3):
            (repository.metadata / f"{number}.targets.json").unlink()
        repository.rechain()

        refused(Reason.WRONG_VERSION)

    def test_an_older_root_in_the_place_of_the_next(self, repository, verified, refused):
        shutil.copy(repository.metadata / "1.root.json", repository.metadata / "2.root.json")

        refused(Reason.WRONG_VERSION)

    def test_targets_that_vanish_from_the_snapshot(self, repository, verified, refused):
        repository.forge("snapshot", lambda signed: setattr(signed, "version", 2), name="2.snapshot.json")
        repository.forge("snapshot", lambda signed: signed.meta.clear())
        data = repository.newest("snapshot").read_bytes()

        def announce(timestamp):
            timestamp.version += 1
            timestamp.snapshot_meta = repository.meta_file(data)

        repository.forge("timestamp", announce)
        refused(Reason.INCONSISTENT)


class TestFreeze:
    YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).replace(microsecond=0)

    def expire(self, signed):
        signed.expires = self.YESTERDAY
        signed.version += 1

    def test_an_expired_timestamp(self, repository, refused):
        repository.forge("timestamp", self.expire)
        refused(Reason.EXPIRED)

    def test_the_same_timestamp_until_it_expires(self, repository, verified, refused):
        """Nothing changes on the server: the time comes to the client's own copy."""
        repository.forge("timestamp", lambda signed: setattr(signed, "expires", self.YESTERDAY))
        shutil.copy(repository.newest("timestamp"), verified.folder / "metadata" / "timestamp.json")
        refused(Reason.EXPIRED)

    def test_an_expired_root(self, repository, refused):
        repository.forge("root", self.expire, name="2.root.json")
        refused(Reason.EXPIRED)

    @pytest.mark.parametrize("role", ["snapshot", "targets"])
    def test_an_expired_role_below(self, repository, refused, role):
        repository.forge(role, self.expire, name=f"2.{role}.json")
        repository.rechain()
        if role == "snapshot":  # chaining has made a third, valid one: announce the second
            (repository.metadata / "3.snapshot.json").unlink()
            data = (repository.metadata / "2.snapshot.json").read_bytes()

            def announce(timestamp):
                timestamp.version += 1
                timestamp.snapshot_meta = repository.meta_file(data)

            repository.forge("timestamp", announce)
        refused(Reason.EXPIRED)

    def test_what_was_verified_ends_too(self, repository, web, verified):
        """Whoever keeps the news away gains nothing after the signatures have ended."""
        web.close()
        file = verified.folder / "verified.json"
        value = json.loads(file.read_bytes())
        file.write_text(json.dumps(value | {"expires_at": self.YESTERDAY.isoformat()}))

        outcome = refresh(verified)
        assert outcome.state is State.CANNOT_VERIFY
        assert "has expired, so none of its releases is offered" in outcome.message


class TestMixAndMatch:
    def test_a_snapshot_of_another_time(self, repository, verified, refused):
        repository.publish("1.0", "1.1")
        shutil.copy(repository.metadata / "1.snapshot.json", repository.metadata / "2.snapshot.json")
        refused(Reason.WRONG_CONTENT)

    def test_a_snapshot_of_another_time_where_no_hash_is_announced(self, repository, verified, refused):
        repository.publish("1.0", "1.1")
        shutil.copy(repository.metadata / "1.snapshot.json", repository.metadata / "2.snapshot.json")

        def forget_hash(timestamp):
            timestamp.snapshot_meta.hashes = timestamp.snapshot_meta.length = None

        repository.forge("timestamp", forget_hash)
        refused(Reason.WRONG_VERSION)

    def test_targets_of_another_time(self, repository, verified, refused):
        repository.publish("1.0", "1.1")
        shutil.copy(repository.metadata / "1.targets.json", repository.metadata / "2.targets.json")
        refused(Reason.WRONG_CONTENT)

    def test_a_registry_of_another_time(self, repository, verified, refused):
        before = repository.target().read_bytes()
        repository.publish("1.0", "1.1")
        repository.target().write_bytes(before)
        refused(Reason.WRONG_CONTENT)

    def test_one_role_in_the_place_of_another(self, repository, verified, refused):
        repository.publish("1.0", "1.1")
        shutil.copy(repository.newest("snapshot"), repository.newest("timestamp"))
        outcome = refresh(verified)
        assert (outcome.state, outcome.reason) == (State.REFUSED, Reason.INCONSISTENT)
        assert versions(verified) == ["1.0"]


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


class TestTooMuch:
    @pytest.mark.parametrize("path", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
    def test_endless_metadata(self, repository, web, refused, path):
        repository.publish("1.0", "1.1")
        web.answers[path] = endless
        refused(Reason.TOO_LONG)

    def test_an_endless_registry(self, repository, web, refused):
        repository.publish("1.0", "1.1")
        web.answers[".registry.json"] = endless
        refused(Reason.TOO_LONG)

    def test_a_registry_that_is_announced_to_be_huge(self, repository, web, refused):
        def announce(targets):
            targets.version += 1
            targets.targets["registry.json"].length = 10**12

        repository.forge("targets", announce, name="2.targets.json")
        repository.rechain()
        web.asked.clear()
        refused(Reason.TOO_LONG)
        assert not any(".registry.json" in path for path in web.asked)

    def test_compressed_zeros_count_as_what_they_are_on_the_wire(self, web, unverified):
        def bomb(handler):
            handler.send_response(200)
            handler.send_header("Content-Encoding", "gzip")
            handler.end_headers()
            handler.wfile.write(gzip.compress(bytes(10_000_000)))

        web.answers["timestamp.json"] = bomb
        unverified(Reason.NO_METADATA)

    def test_roots_without_end(self, repository, refused, verified):
        for _ in range(260):
            data = repository.newest("root").read_bytes()
            version = Metadata.from_bytes(data).signed.version + 1
            repository.forge(
                "root", lambda signed, v=version: setattr(signed, "version", v), name=f"{version}.root.json"
            )
        repository.publish("1.0", "1.1")

        assert refresh(verified).ok  # as far as one refresh goes; the next one goes on
        assert len(list((verified.folder / "metadata" / "root_history").iterdir())) == 257


class TestTooSlow:
    DEADLINE_S = 1.0

    def drip(self, web, *, headers):
        def answer(handler):
            if not headers:
                handler.send_response(200)
                handler.end_headers()
            else:
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not web.closing.wait(0.05):
                handler.wfile.write(b"X-A: b\r\n" if headers else b" ")

        return answer

    @pytest.mark.parametrize("headers", [False, True], ids=["body", "headers"])
    def test_a_drip_has_an_end(self, web, unverified, headers):
        web.answers["timestamp.json"] = self.drip(web, headers=headers)
        unverified(Reason.TOO_SLOW, deadline_s=self.DEADLINE_S)

    def test_a_dripping_registry_has_an_end(self, repository, web, unverified):
        repository.publish("1.0", "1.1")
        web.answers[".registry.json"] = self.drip(web, headers=False)
        unverified(Reason.TOO_SLOW, deadline_s=self.DEADLINE_S)

    def test_silence_has_an_end(self, web, unverified):
        web.answers["timestamp.json"] = lambda handler: web.closing.wait(60)
        unverified(Reason.TOO_SLOW, deadline_s=self.DEADLINE_S)


class TestWrongContent:
    @pytest.mark.parametrize("change", [lambda d: d + b"\n", lambda d: d[:-1], lambda d: d.replace(b"1.1", b"6.6")])
    def test_of_the_registry(self, repository, refused, change):
        repository.publish("1.0", "1.1")
        repository.target().write_bytes(change(repository.target().read_bytes()))
        refused(Reason.TOO_LONG if change(b"") == b"\n" else Reason.WRONG_CONTENT)

    @pytest.mark.parametrize("role", ["snapshot", "targets"])
    def test_of_metadata(self, repository, refused, role):
        repository.publish("1.0", "1.1")
        file = repository.newest(role)
        file.write_bytes(file.read_bytes().replace(b'"version":2', b'"version":3'))
        refused(Reason.WRONG_CONTENT)

    def test_a_registry_that_is_none_though_signed(self, repository, verified, refused):
        data = b'{"schema_version": 1, "releases": [{}]}'
        entry = TargetFile.from_data("registry.json", data, ["sha256"])
        (repository.site / "targets" / f"{entry.hashes['sha256']}.registry.json").write_bytes(data)

        def point(targets):
            targets.version += 1
            targets.targets = {"registry.json": entry}

        repository.forge("targets", point, name="2.targets.json")
        repository.rechain()
        refused(Reason.UNREADABLE)

    @pytest.mark.parametrize("path", ["../registry.json", "../../../home/x.json", "/etc/passwd", "x/../../y"])
    def test_only_the_registry_is_ever_asked_for(self, repository, web, refused, home, path):
        def rename(targets):
            targets.version += 1
            targets.targets = {path: TargetFile.from_data(path, b"{}", ["sha256"])}

        repository.forge("targets", rename, name="2.targets.json")
        repository.rechain()
        before = sorted(p for p in home.parent.rglob("*.json") if "publisher" not in p.parts)
        refused(Reason.INCONSISTENT)
        assert sorted(p for p in home.parent.rglob("*.json") if "publisher" not in p.parts) == before

    def test_nobody_else_is_asked_what_the_targets_name(self, repository, web, verified, refused):
        from tuf.api.metadata import DelegatedRole, Delegations

        key = CryptoSigner.generate_ed25519()

        def delegate(targets):
            role = DelegatedRole("../../evil", [key.public_key.keyid], 1, True, ["*"])
            targets.version += 1
            targets.targets = {}
            targets.delegations = Delegations({key.public_key.keyid: key.public_key}, {"../../evil": role})

        repository.forge("targets", delegate, name="2.targets.json")
        repository.rechain()
        web.asked.clear()
        refused(Reason.INCONSISTENT)
        assert not any("evil" in path for path in web.asked)


class TestWrongKeys:
    STRANGER = CryptoSigner.generate_ed25519()

    def test_a_timestamp_of_a_stranger(self, repository, refused):
        repository.forge("timestamp", lambda signed: setattr(signed, "version", 9), keys=[self.STRANGER])
        refused(Reason.SIGNATURE)

    @pytest.mark.parametrize("role", ["snapshot", "targets"])
    def test_a_role_signed_by_another_roles_key(self, repository, refused, role):
        def on(metadata):
            metadata.version = 2

        repository.forge(role, on, name=f"2.{role}.json", keys=signing.keys_of(repository.keys, "timestamp"))
        data = (repository.metadata / f"2.{role}.json").read_bytes()
        if role == "targets":
            repository.rechain()
        else:

            def announce(timestamp):
                timestamp.version += 1
                timestamp.snapshot_meta = repository.meta_file(data)

            repository.forge("timestamp", announce)
        refused(Reason.SIGNATURE)

    def test_an_unsigned_timestamp(self, repository, refused):
        repository.forge("timestamp", lambda signed: setattr(signed, "version", 9), keys=[])
        refused(Reason.SIGNATURE)

    def test_a_threshold_that_is_not_met(self, repository, verified, refused):
        second = CryptoSigner.generate_ed25519()

        def two(root):
            root.version = 2
            root.add_key(second.public_key, "timestamp")
            root.roles["timestamp"].threshold = 2

        repository.forge("root", two, name="2.root.json")
        first = signing.keys_of(repository.keys, "timestamp")
        repository.forge("timestamp", lambda signed: setattr(signed, "version", 5), keys=first)
        refused(Reason.SIGNATURE)

        repository.forge("timestamp", lambda signed: setattr(signed, "version", 5), keys=[*first, second])
        assert refresh(verified).ok

    def test_the_same_signature_twice_is_one(self, repository, unverified):
        def two(root):
            root.version = 2
            root.roles["timestamp"].threshold = 2
            root.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")

        repository.forge("root", two, name="2.root.json")
        repository.forge("timestamp", lambda signed: setattr(signed, "version", 5))
        file = repository.newest("timestamp")
        value = json.loads(file.read_bytes())
        file.write_text(json.dumps(value | {"signatures": value["signatures"] * 2}))
        unverified(Reason.NO_METADATA)

    @pytest.mark.parametrize("by", ["only its own key", "a stranger", "nobody"])
    def test_a_root_that_the_root_before_it_did_not_sign(self, repository, refused, by):
        def take_over(root):
            root.version = 2
            for role in publishing.ROLES:
                for keyid in list(root.roles[role].keyids):
                    root.revoke_key(keyid, role)
                root.add_key(self.STRANGER.public_key, role)

        keys = {"only its own key": [self.STRANGER], "a stranger": [CryptoSigner.generate_ed25519()], "nobody": []}
        repository.forge("root", take_over, name="2.root.json", keys=keys[by])
        refused(Reason.SIGNATURE)

    def test_a_root_that_does_not_sign_itself(self, repository, refused):
        def new_key(root):
            root.version = 2
            root.revoke_key(root.roles["root"].keyids[0], "root")
            root.add_key(self.STRANGER.public_key, "root")

        repository.forge("root", new_key, name="2.root.json")
        refused(Reason.SIGNATURE)

    def test_a_root_of_another_repository_is_no_beginning(self, repository, web, home, tmp_path):
        other = type(repository)(tmp_path / "other")
        other.publish("1.0")
        registry = trust.make_trusted(home, web.url, other.root(), "acme")

        outcome = refresh(registry)
        assert (outcome.state, outcome.reason) == (State.REFUSED, Reason.SIGNATURE)
        assert "nothing of it was verified before" in outcome.message
        assert versions(registry) == []

    def test_what_is_no_root(self, repository):
        with pytest.raises(RegistryError, match="no root of a signed registry"):
            signed.check_root(b"<html>")
        with pytest.raises(RegistryError, match="it is timestamp metadata"):
            signed.check_root(repository.newest("timestamp").read_bytes())
        changed = repository.newest("root").read_bytes().replace(b'"version":1', b'"version":2')
        with pytest.raises(RegistryError, match="no root of a signed registry"):
            signed.check_root(changed)


class TestNothingToVerify:
    @pytest.mark.parametrize("status", [500, 503, 429, 403, 404])
    def test_a_status_that_says_no(self, web, unverified, status):
        web.answers["timestamp.json"] = lambda handler: handler.send_error(status)
        unverified(Reason.HTTP_STATUS)

    def test_a_root_that_the_server_cannot_find_out_about(self, web, unverified):
        web.answers["2.root.json"] = lambda handler: handler.send_error(500)
        unverified(Reason.HTTP_STATUS)

    def test_no_server(self, web, unverified):
        web.close()
        unverified(Reason.UNREACHABLE)

    def test_offline(self, web, unverified, monkeypatch):
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        web.asked.clear()
        unverified(Reason.OFFLINE)
        assert web.asked == []

    def test_a_page_to_log_in(self, web, unverified):
        def page(handler):
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html; charset=utf-8")
            handler.end_headers()
            handler.wfile.write(b"<html>" + b"x" * 100_000)

        web.answers["timestamp.json"] = page
        unverified(Reason.WEB_PAGE)

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"signed": {"_type": "root"}}', b"[" * 9000]
    )
    def test_what_is_no_metadata(self, web, unverified, data):
        def answer(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        web.answers["timestamp.json"] = answer
        unverified(Reason.NO_METADATA)

    @pytest.mark.parametrize(
        "target", ["/metadata/timestamp.json", "/other/timestamp.json", "file:///etc/passwd", "gopher://x/", "http://"]
    )
    def test_redirects_that_lead_nowhere(self, web, unverified, target):
        def again(handler):
            handler.send_response(302)
            handler.send_header("Location", target)
            handler.end_headers()

        web.answers["timestamp.json"] = again
        unverified(Reason.UNREACHABLE)

    def test_a_connection_that_breaks_off(self, repository, web, unverified):
        repository.publish("1.0", "1.1")

        def half(handler):
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"{")

        web.answers[".registry.json"] = half
        unverified(Reason.UNREACHABLE)

    def test_another_process_at_work(self, verified, unverified):
        from filelock import FileLock

        with FileLock(verified.folder / "lock"):
            unverified(Reason.BUSY, lock_s=0.1)


def test_eight_processes_at_once(repository, web, registry, home):
    code = (
        "import sys; from pathlib import Path; from paceline.registry import signed, trust\n"
        "outcome = signed.refresh(trust.get_trusted(Path(sys.argv[1]), 'acme'))\n"
        "sys.exit(0 if outcome.ok else outcome.message)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    for i, process in enumerate(running):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, (i, said)

    assert versions(registry) == ["1.0"]
    assert not list((registry.folder / "metadata").glob("tmp*"))


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the steps are broken off in forked processes")
class TestKilledAtEveryStep:
    def run(self, *arguments):
        done = subprocess.run(
            [sys.executable, str(BREAKER), *map(str, arguments)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_a_first_refresh(self, registry, home, tmp_path):
        result = self.run("refresh", home, tmp_path / "work")
        assert result["wrong"] == []
        assert f": {result['steps']} steps of a first one, " in RELIABILITY

    def test_a_refresh_with_news(self, repository, verified, home, tmp_path):
        publishing.rotate("root", repository.keys, repository.site)
        repository.publish("1.1")
        result = self.run("refresh", home, tmp_path / "work")
        assert result["wrong"] == []
        assert f" of a first one, {result['steps']} of one that follows a changed root key." in RELIABILITY
