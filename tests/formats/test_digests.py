from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.formats.digests import MAX_SIZE_DIFFERENCE, prefix_digests, same_tokens

texts = st.lists(st.binary(max_size=3).map(lambda b: b.replace(b"\0", b"")), max_size=300)


@given(a=texts, cut=st.integers(0, MAX_SIZE_DIFFERENCE), first=st.integers(0, 6), data=st.data())
def test_digests_agree_exactly_when_the_common_tokens_do(a, cut, first, data):
    b = a[: len(a) - min(cut, len(a))]
    if b and data.draw(st.booleans()):
        b[data.draw(st.integers(0, len(b) - 1))] = data.draw(st.binary(max_size=3)).replace(b"\0", b"")
    common = min(len(a), len(b))
    expected = a[first:common] == b[first:common]
    assert same_tokens(prefix_digests(a, first), len(a), prefix_digests(b, first), len(b)) is expected
    assert same_tokens(prefix_digests(b, first), len(b), prefix_digests(a, first), len(a)) is expected


def test_tokens_do_not_run_together():
    a, b = [b"ab", b"c"], [b"a", b"bc"]
    assert not same_tokens(prefix_digests(a), 2, prefix_digests(b), 2)
