"""What the host's own costs are measured with: a made library, and a worker that answers many at a time."""

from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_made_library_is_read_and_judged(bench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its steps run in processes that import it anew
    costs = {cost.work: cost for cost in bench("index").measure(12, 200, tmp_path)}
    assert [cost.pairs for cost in costs.values()] == [None, None, None, 12, 13 * 12, 13 * 12]
    assert all(cost.cpu_s > 0 for cost in costs.values())
    content = {"words": 200, "records": [cost.__dict__ for cost in costs.values()]}
    assert "12 models" in bench("index").tables(content)


def test_streams_are_answered_together_and_each_token_counted(bench):
    loads = bench("relay_load").measure([2], 5, 1)
    assert [(load.kind, load.streams, load.tokens) for load in loads] == [("completion", 2, 8), ("chat", 2, 8)]
