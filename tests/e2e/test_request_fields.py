"""What a request can ask for beyond text, over a real engine: prompt lookup, contexts that overflow."""

import httpx
import pytest

pytestmark = pytest.mark.runtime

NAMES = ("width", "height", "depth", "colour", "weight")
GETTERS = "".join(f"    def get_{name}(self):\n        return self.{name}\n\n" for name in NAMES * 3)
"""A text that goes on as it began."""


def post(server, path, **body):
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Prompt lookup


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v0/completions"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "seeded"])
def test_prompt_lookup_alone_changes_nothing_but_the_speed(server, pair, path, sampling):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 48, **sampling}
    plain = post(server, path, **request)
    looked_up = post(server, path, **request, speculative={"promptLookup": True, "numDraftTokensExact": 4})
    assert looked_up["choices"][0]["text"] == plain["choices"][0]["text"]
    stats = looked_up["stats"]
    assert "draft_model" not in stats
    assert stats["total_lookup_tokens_count"] == stats["total_draft_tokens_count"] > 0
    assert stats["accepted_lookup_tokens_count"] == stats["accepted_draft_tokens_count"] > 0
    assert not [name for name in plain["stats"] if "draft" in name or "lookup" in name]


def test_prompt_lookup_beside_a_draft_model(server, pair):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 48, "temperature": 0}
    plain = post(server, "/v1/completions", **request)
    both = post(server, "/v1/completions", **request, draft_model=pair[1], speculative={"promptLookup": True})
    assert both["choices"][0]["text"] == plain["choices"][0]["text"]
    stats = both["stats"]
    assert stats["draft_model"] == pair[1]
    assert 0 <= stats["accepted_lookup_tokens_count"] <= stats["total_lookup_tokens_count"]
    assert stats["total_lookup_tokens_count"] <= stats["total_draft_tokens_count"]


# Contexts that overflow


@pytest.mark.parametrize("policy", ["truncateMiddle", "rollingWindow"])
def test_a_prompt_longer_than_the_context_loses_tokens_where_it_may(server, pair, policy):
    request = {"model": pair[0], "prompt": "word " * 3000, "max_tokens": 4, "temperature": 0}
    told = post(server, "/v1/completions", **request, contextOverflowPolicy=policy)
    assert told["usage"]["completion_tokens"] == 4
    assert told["usage"]["prompt_tokens"] < 2048
    assert told["stats"]["dropped_context_tokens_count"] > 900
    refused = httpx.post(f"{server.url}/v1/completions", json={**request, "contextOverflowPolicy": "stopAtLimit"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
