"""Tokens of the API: what is kept of them, and what they allow."""

from __future__ import annotations

import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from paceline.errors import AmbiguousError, NotFoundError, StoreError
from paceline.tokens import Permission, Tokens

BOTH = (Permission.ADMIN, Permission.INFERENCE)


@pytest.fixture
def tokens(tmp_path):
    return Tokens(tmp_path / "home")


def test_a_token_allows_what_it_was_made_for(tokens):
    _, user = tokens.create("tool", [Permission.INFERENCE])
    _, admin = tokens.create("me", BOTH)

    assert tokens.permissions_of(user) == {Permission.INFERENCE}
    assert tokens.permissions_of(admin) == set(BOTH)
    for wrong in ("", "unused", user[:-1], f"{user}x", user.upper(), user.replace("sk-pl-", "sk-lm-"), "sk-pl-\ud800"):
        assert tokens.permissions_of(wrong) == frozenset()


def test_only_hashes_are_kept_for_the_owner_alone(tokens):
    token, text = tokens.create("tool", [Permission.INFERENCE])

    assert text.split("-", 3)[3] not in tokens.file.read_text()
    assert token.sha256 in tokens.file.read_text()
    if sys.platform != "win32":
        assert stat.S_IMODE(tokens.file.stat().st_mode) == 0o600


def test_what_a_killed_process_left_is_swept(tokens):
    tokens.create("tool", [Permission.INFERENCE])
    left = tokens.file.with_name(f".{tokens.file.name}.1a2b3c4d")
    left.write_text("{")
    tokens.create("other", [Permission.INFERENCE])
    assert not left.exists()


def test_what_is_revoked_counts_no_longer_in_a_running_server(tokens):
    token, text = tokens.create("tool", [Permission.INFERENCE])
    _, other = tokens.create("other", [Permission.INFERENCE])
    server = Tokens(tokens.file.parent)
    assert server.permissions_of(text)

    assert tokens.revoke("tool") == token

    assert not server.permissions_of(text)
    assert server.permissions_of(other)


def test_names_that_mean_none_or_several(tokens):
    first, _ = tokens.create("same", [Permission.INFERENCE])
    tokens.create("same", [Permission.INFERENCE])
    with pytest.raises(AmbiguousError, match="2 tokens are called 'same'"):
        tokens.revoke("same")
    assert tokens.revoke(first.id) == first
    with pytest.raises(NotFoundError):
        tokens.revoke(first.id)


def test_tokens_made_at_once_are_all_kept(tokens):
    with ThreadPoolExecutor(8) as pool:
        texts = [text for _, text in pool.map(lambda i: tokens.create(f"t{i}", [Permission.INFERENCE]), range(16))]
    assert len(tokens.all()) == 16
    assert all(tokens.permissions_of(text) for text in texts)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "tokens": [{"id": 1}]}']
)
def test_a_damaged_file_lets_nobody_in(tokens, content):
    _, text = tokens.create("tool", [Permission.INFERENCE])
    tokens.file.write_text(content)
    with pytest.raises(StoreError, match=r"tokens\.json cannot be read"):
        tokens.permissions_of(text)
