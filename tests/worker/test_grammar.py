"""A grammar decides which tokens may come next, whatever cuts its text into tokens."""

import json
import random
import re
import threading

import pytest

from paceline_worker.protocol import Fault
from paceline_worker.request import parse_generate

pytest.importorskip("llguidance")

from paceline_worker.grammar import Grammars

WORDS = [
    "true",
    "false",
    "null",
    '{"',
    '":',
    '": ',
    '"}',
    "name",
    "age",
    "  ",
    "ab",
    "ba",
    "aa",
    "12",
    "é",
    "ß!",
    "\n\n",
]
PIECES = [bytes([b]) for b in range(256)] + [word.encode() for word in WORDS] + [b"\xc3", b"</s>", b"<eot>", b""]
ENDS = (len(PIECES) - 3, len(PIECES) - 2)
NOTHING = len(PIECES) - 1


class Bytes:
    """Every byte, some words, half a character, two tokens that end the turn, and one without bytes."""

    n_vocab = len(PIECES)

    def piece(self, token):
        return PIECES[token]

    def ends(self, token):
        return token in ENDS


class Waiting:
    """Grammars, each waited for."""

    def __init__(self, grammars):
        self._grammars = grammars

    def matcher(self, grammar):
        return self.begun(grammar).result()

    def begun(self, grammar):
        return self._grammars.matcher(grammar)


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(Bytes())
    yield Waiting(made)
    made.close()


def grammar(**given):
    return parse_generate({"prompt": "a", "grammar": given}).grammar


def walk(matcher, seed):
    """Tokens drawn evenly from what is allowed until the output is over, as text."""
    drawn, out = random.Random(seed), b""
    for _ in range(400):
        allowed = matcher.allowed().tolist()
        assert allowed == sorted(set(allowed))
        assert all(matcher.allows(token) for token in allowed)
        refused = set(range(Bytes.n_vocab)) - set(allowed)
        assert not any(matcher.allows(token) for token in refused)
        # A token that ends the turn comes as soon as it may, lest an unbounded string goes on and on.
        ends = [token for token in allowed if token in ENDS]
        token = drawn.choice(ends or allowed)
        matcher.advance(token)
        if matcher.ended:
            return (out if ends else out + PIECES[token]).decode()
        out += PIECES[token]
    return None


@pytest.mark.parametrize("regex", ["(ab|ba)+a{2}", r"\d{3}-[a-z]+/\w", "é{1,3}ß!?", "a\nb", "[^a]{2}"])
def test_a_regular_expression_is_matched_as_a_whole(grammars, regex):
    for seed in range(8):
        text = walk(grammars.matcher(grammar(regex=regex)), seed)
        assert text is None or re.fullmatch(regex, text), text


def test_a_schema_gives_json_of_its_kind(grammars):
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["ab", "é"]}, "age": {"type": "integer", "minimum": 3, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(20):
        value = json.loads(walk(grammars.matcher(grammar(json_schema=schema)), seed))
        assert value.keys() == {"name", "age"}
        assert value["name"] in ("ab", "é")
        assert 3 <= value["age"] <= 99


def test_lark_and_gbnf(grammars):
    texts = {
        walk(grammars.matcher(rule), seed)
        for seed in range(10)
        for rule in (grammar(lark='start: "ab" ("12")?'), grammar(gbnf='root ::= "ab" "12"?'))
    }
    assert texts == {"ab", "ab12"} or texts == {"ab"}


def test_the_turn_may_end_only_where_the_grammar_may(grammars):
    matcher = grammars.matcher(grammar(regex="ab?"))
    assert not any(matcher.allows(token) for token in ENDS)
    matcher.advance(ord("a"))
    assert set(matcher.allowed().tolist()) == {ord("b"), *ENDS}
    assert not matcher.ended
    matcher.advance(ENDS[1])
    assert matcher.ended


def test_a_grammar_with_nothing_left_ends_the_output(grammars):
    matcher = grammars.matcher(grammar(regex="ab?"))
    matcher.advance(ord("a"))
    matcher.advance(ord("b"))
    assert matcher.ended


def test_a_token_without_bytes_is_never_allowed(grammars):
    assert not grammars.matcher(grammar(regex="(?s:.*)")).allows(NOTHING)


def test_matchers_of_one_grammar_are_apart(grammars):
    first, second = (grammars.matcher(grammar(regex="ab")) for _ in range(2))
    first.advance(ord("a"))
    assert second.allows(ord("a"))
    assert not second.allows(ord("b"))


SPACES = {
    "compact": '{"a":1,"b":[2,3]}',
    "usual": '{"a": 1, "b": [2, 3]}',
    "indented": '{\n  "a": 1,\n  "b": [\n\t\t2,\n    3\n  ]\n}',
    "blank line": '{\n\n"a": 1}',
}


@pytest.mark.parametrize("text", SPACES.values(), ids=SPACES)
def test_json_is_written_as_people_write_it(grammars, text):
    matcher = grammars.matcher(grammar(json_schema={"type": "object"}))
    for byte in text.encode():
        assert matcher.allows(byte)
        matcher.advance(byte)
    assert matcher.ended or set(ENDS) & set(matcher.allowed().tolist())


@pytest.mark.parametrize(("begun", "most"), [("{", 1), ("{\n", 20), ("{\n\n", 20), ('{"a":', 1), ('{"a":1,\n', 20)])
def test_white_space_in_json_is_bounded(grammars, begun, most):
    matcher = grammars.matcher(grammar(json_schema={"type": "object"}))
    for byte in begun.encode():
        matcher.advance(byte)
    spaces = 0
    while matcher.allows(ord(" ")):
        matcher.advance(ord(" "))
        spaces += 1
    assert spaces == most
    assert not matcher.allows(ord("\t"))
    assert not matcher.allows(ord("\n"))


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"regex": "[ab"}, "unclosed character class"),
        ({"regex": "a&&b(?=c)"}, "look-around"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"regex": "a?" * 5000}, "at most 8192"),
        ({"regex": "(" * 2000 + "a" + ")" * 2000}, "nested"),
        ({"lark": "start: x"}, "unknown name"),
        ({"lark": ""}, "no start rule"),
        ({"lark": 'start: "' + "a" * 10_000 + '"'}, "a line of more than"),
        ({"lark": 'start: start "a"'}, "nothing can match it"),
        ({"gbnf": 'root ::= "a" b'}, "Rule 'b' not found"),
        ({"gbnf": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "nested too deeply"),
        ({"json_schema": {"type": "foo"}}, "Invalid type"),
        ({"json_schema": {"$ref": "http://127.0.0.1:1/x"}}, "does not fetch"),
        ({"json_schema": {"not": {}}}, "Unimplemented"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum (3) is greater than maximum (2)"),
        ({"json_schema": deep(200)}, "nested too deeply"),
        ({"json_schema": {"type": "string", "pattern": "a?" * 5000}}, "a string of more than"),
        ({"json_schema": {"enum": [f"word {i}" for i in range(20_000)]}}, "at most 262144"),
    ],
)
def test_what_is_no_usable_grammar_is_refused_with_the_reason(grammars, given, reason):
    with pytest.raises(Fault, match=re.escape(reason)) as caught:
        grammars.matcher(grammar(**given))
    assert caught.value.data == {"kind": "invalid_request", "param": "grammar"}
    assert len(str(caught.value)) < 500


def test_a_long_chain_of_rules_is_followed(grammars):
    rules = "\n".join(f'r{i}: r{i + 1} "a"' for i in range(3000))
    matcher = grammars.matcher(grammar(lark=f'start: r0\n{rules}\nr3000: "b"'))
    assert matcher.allows(ord("b"))
    assert not matcher.allows(ord("a"))


def test_limits_that_end_a_search_are_a_fault_of_the_request(grammars):
    matcher = grammars.matcher(grammar(regex="((a{1,1000}){1,1000}){1,1000}"))

    def go_on():
        for _ in range(1000):
            matcher.allowed()
            matcher.advance(ord("a"))

    with pytest.raises(Fault) as caught:
        go_on()
    assert caught.value.data == {"kind": "invalid_request", "param": "grammar"}


def test_a_grammar_that_is_known_is_there_at_once(grammars):
    rule = grammar(regex="known before")
    grammars.matcher(rule)
    assert grammars.begun(rule).done()


def test_a_vocabulary_is_no_longer_read_when_its_grammars_are_closed():
    happened, reading, go_on = [], threading.Event(), threading.Event()

    class Slow(Bytes):
        def piece(self, token):
            reading.set()
            go_on.wait()
            happened.append("read")
            return super().piece(token)

    made = Grammars(Slow())
    first, second = made.matcher(grammar(regex="a")), made.matcher(grammar(regex="b"))
    reading.wait()
    closing = threading.Thread(target=lambda: (made.close(), happened.append("closed")))
    closing.start()
    go_on.set()
    closing.join()
    assert happened.count("read") == len(PIECES) - len(ENDS)
    assert happened[-1] == "closed"
    assert second.cancelled()
    assert first.result().allows(ord("a"))
