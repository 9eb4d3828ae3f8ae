"""Events whose text alone changes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from paceline.api.sse import TextEvents, event


@given(st.text())
def test_a_text_event_is_the_event_with_that_text(text):
    payload = {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    template = {"id": "x", "choices": [{"index": 0, "delta": {"content": "PLACE"}, "finish_reason": None}]}
    made = TextEvents(template, "PLACE").event(text)
    assert made == event(payload)
    assert made.startswith(b"data: ")
    assert made.endswith(b"\n\n")
    assert b"\n" not in made[:-2]
    assert json.loads(made[6:]) == payload
