"""Committed tokens become text: stop strings, UTF-8 across tokens, limits, draft marks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.output import Output, StopReason, StopStrings

ALPHABET = "ab<|"


def run(chunks, *, stop=(), max_tokens=None, room=10_000, end_at=None):
    output = Output(max_tokens=max_tokens, context_room=room, stop=stop)
    for i, chunk in enumerate(chunks):
        if output.push(i, chunk, drafted=i % 2 == 1, end=i == end_at):
            break
    pieces = output.take()
    return output, "".join(p[1] for p in pieces if len(p) > 1), pieces


@given(
    st.lists(st.text(ALPHABET, max_size=4), max_size=12),
    st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_ends_the_text_wherever_the_tokens_split_it(chunks, stops):
    text = "".join(chunks)
    found = [text.find(s) for s in stops if s in text]
    output, shown, _ = run([c.encode() for c in chunks] + [b""], stop=stops, end_at=len(chunks))
    if found:
        # Tokens arrive one by one: the stop string that is complete first ends the text.
        first_complete = min(
            (next(i for i in range(len(chunks) + 1) if s in "".join(chunks[:i])), text.find(s), -len(s))
            for s in stops
            if s in text
        )
        assert output.stop_reason is StopReason.STOP_STRING_FOUND
        assert output.stop_string in stops
        assert shown == text[: first_complete[1]]
    else:
        assert output.stop_reason is StopReason.EOS_FOUND
        assert shown == text


@given(st.text(max_size=20), st.randoms())
def test_characters_split_over_tokens_come_whole(text, random):
    data = text.encode()
    cuts = sorted(random.sample(range(len(data) + 1), min(len(data), 5)))
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    _, shown, pieces = run([*chunks, b""], end_at=len(chunks))
    assert shown == text
    assert len(pieces) == len(chunks) + 1


def test_bytes_that_are_no_text_are_replaced_not_lost():
    _, shown, _ = run([b"a\xff", b"b\xe2\x82", b""], end_at=2)
    assert shown == "a�b�"


def test_what_may_become_a_stop_string_is_held_back_and_released():
    output = Output(max_tokens=None, context_room=100, stop=["END"])
    output.push(1, b"xE", drafted=False, end=False)
    assert output.take() == [[1, "x"]]
    output.push(2, b"N", drafted=True, end=False)
    assert output.take() == [[2, "", True]]
    output.push(3, b"ow", drafted=False, end=False)
    assert output.take() == [[3, "ENow"]]


def test_the_token_limit_releases_what_was_held():
    output, shown, _ = run([b"aE", b"N"], stop=["END"], max_tokens=2)
    assert (output.stop_reason, shown, output.count) == (StopReason.MAX_TOKENS, "aEN", 2)


def test_a_full_context_is_another_reason_than_the_request_s_limit():
    output, _, _ = run([b"a", b"b"], max_tokens=5, room=2)
    assert output.stop_reason is StopReason.CONTEXT_LENGTH
    output, _, _ = run([b"a", b"b"], max_tokens=2, room=2)
    assert output.stop_reason is StopReason.MAX_TOKENS


def test_left_counts_down_and_is_zero_when_over():
    output = Output(max_tokens=3, context_room=10, stop=[])
    assert output.left == 3
    output.push(1, b"a", drafted=False, end=False)
    assert output.left == 2
    output.push(2, b"", drafted=False, end=True)
    assert output.left == 0


@pytest.mark.parametrize(("stops", "text", "at"), [(["ab", "b"], "ab", 0), (["b", "ab"], "xab", 1), (["aa"], "aaa", 0)])
def test_the_earliest_stop_string_wins(stops, text, at):
    shown, stop = StopStrings(stops).feed(text)
    assert shown == text[:at]
    assert stop is not None


@given(
    st.lists(st.text("ab", max_size=9), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=24), min_size=1, max_size=4),
)
def test_no_more_is_held_back_than_what_may_become_a_stop_string(chunks, stops):
    strings, text, shown = StopStrings(stops), "", ""
    for chunk in chunks:
        text += chunk
        more, found = strings.feed(chunk)
        shown += more
        if found is not None:
            assert text.startswith(shown + found)
            return
        assert not any(stop in text for stop in stops)
        begun = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
        assert shown == text[: len(text) - max(begun)]
    assert shown + strings.rest() == text


def test_long_stop_strings_cost_a_few_looks_for_each_character():
    class Counted(str):
        looked = 0

        def __getitem__(self, place):
            Counted.looked += 1
            return super().__getitem__(place)

    strings = StopStrings([Counted("a" * 4095 + "b"), Counted("b" * 4096)])
    for _ in range(5_000):
        strings.feed("aa")
    assert Counted.looked < 10 * 2 * 5_000
