"""What verifying a proposal commits, counts, and leaves of the draft model's state, whoever proposed."""

import pytest

from paceline_worker.decoding import Decoding, read_prompt
from paceline_worker.request import parse_generate
from paceline_worker.speculation import Controller


class Letters:
    """A vocabulary of one token per letter; `z` ends the turn."""

    n_vocab = 26
    bos = None

    def tokenize(self, text, *, add_special):
        return [ord(letter) - 97 for letter in text]

    def piece(self, token):
        return bytes([97 + token])

    def ends(self, token):
        return token == 25


def ids(text):
    return Letters().tokenize(text, add_special=False)


def opened(prompt="abcab", draft=None, draft_vocabulary=26, **params):
    request = parse_generate({"prompt": prompt, "draft": draft, **params})
    tokens, output = read_prompt(request, Letters(), 64)
    decoding = Decoding(request=request, output=output, prompt_tokens=len(tokens), vocabulary=Letters(), tokens=tokens)
    decoding.invite(Controller(), draft_vocabulary=draft_vocabulary)
    return decoding


def no_logits(position):
    raise AssertionError("nobody asked for log probabilities")


def verified(decoding, proposal, truth, *, looked_up):
    return decoding.verify(ids(proposal), lambda i: ids(truth)[i], no_logits, looked_up=looked_up)


@pytest.mark.parametrize(
    ("draft", "vocabulary", "drafters", "skipped"),
    [
        (None, 26, "", None),
        ({}, 26, "model", None),
        ({}, None, "", "no draft model is loaded"),
        ({}, 2, "", "smaller vocabulary"),
        ({"lookup": True}, 26, "model lookup", None),
        ({"lookup": True}, None, "lookup", "no draft model is loaded"),
        ({"lookup": True}, 2, "lookup", "smaller vocabulary"),
        ({"model": False, "lookup": True}, None, "lookup", None),
    ],
)
def test_who_drafts_and_why_somebody_does_not(draft, vocabulary, drafters, skipped):
    decoding = opened(draft=draft, draft_vocabulary=vocabulary)
    assert (decoding.draft_vocabulary is not None) == ("model" in drafters)
    assert (decoding.stream.lookup is not None) == ("lookup" in drafters)
    assert (decoding.acceptance is not None) == (decoding.room > 0) == bool(drafters)
    assert decoding.draft_skipped == skipped or skipped in decoding.draft_skipped


def test_the_record_tells_the_drafters_apart():
    decoding = opened(draft={"lookup": True}, max_tokens=20)
    decoding.drafted = ids("xy")
    assert verified(decoding, "cab", "cad", looked_up=True) == (ids("cad"), 2)
    decoding.drafted = ids("efgh")
    assert verified(decoding, "efg", "efgh", looked_up=False) == (ids("efgh"), 3)
    frame = decoding.acceptance.frame()
    assert (frame["drafted"], frame["accepted"], frame["rejected"], frame["ignored"]) == (9, 5, 1, 3)
    assert frame["lookup"] == {"drafted": 3, "accepted": 2}


@pytest.mark.parametrize(
    ("drafted", "proposal", "truth", "looked_up", "kept"),
    [
        ("cde", "cde", "cdx", False, 2),
        ("cde", "c", "cd", False, 1),  # the last committed token is never in the draft's state
        ("xyz", "cab", "cabc", True, 0),
        ("cax", "cab", "cabc", True, 2),
        ("", "cab", "cabc", True, 0),
        ("cd", "", "c", False, 0),
    ],
)
def test_of_the_draft_model_s_state_stays_what_became_true(drafted, proposal, truth, looked_up, kept):
    decoding = opened(draft={"lookup": True})
    decoding.drafted = ids(drafted)
    emitted, _ = verified(decoding, proposal, truth, looked_up=looked_up)
    assert decoding.agreed(emitted) == kept


def test_lookup_sees_every_token_and_goes_on_when_the_draft_model_leaves():
    decoding = opened(draft={"lookup": True}, draft_vocabulary=10)
    assert decoding.stream.lookup.propose(3)[0] == ids("cab")
    decoding.commit(ids("k")[0], drafted=False)
    assert decoding.draft_vocabulary is None
    assert not decoding.stream.has_model
    assert "smaller vocabulary" in decoding.draft_skipped
    assert decoding.room > 0
    for token in ids("jabk"):
        decoding.commit(token, drafted=False)
    assert decoding.stream.lookup.propose(1)[0] == ids("j")


def test_nothing_is_drafted_past_the_output_s_end():
    decoding = opened(draft={"model": False, "lookup": True}, max_tokens=3)
    assert decoding.room == 2
    emitted, accepted = verified(decoding, "ca", "cab", looked_up=True)
    assert (len(emitted), accepted, decoding.room) == (3, 2, 0)
