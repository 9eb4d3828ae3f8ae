"""Medians, ratios and tables of known figures; the client against a real server."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isnan

import pytest

from paceline.errors import PacelineError, UsageError
from paceline.types import Package, Recipe, Release, Requirements


@pytest.fixture(scope="session")
def report(bench):
    return bench("report")


@pytest.fixture(scope="session")
def client(bench):
    return bench("client")


@pytest.fixture
def record(report, client):
    """A run of two equal answers: `record("paceline", repeat, seconds)`."""

    def make(
        contender, repeat, wall_s, *, tokens=50, first=0.1, gap=0.01, drafted=0, accepted=0, text="x", other_cores=0.0
    ):
        arrivals = tuple(first + gap * i for i in (0, 1, 2, 3, 6))
        answer = client.Answer(arrivals, arrivals[-1], text, tokens, drafted, accepted)
        cell = report.Cell("F16", "code", 1, 0.0)
        return report.Record(cell, contender, repeat, client.Run(wall_s, (answer, answer)), other_cores)

    return make


def only_cell(report, records):
    ((_, found),) = report.rows(records).items()
    return {row.contender: row for row in found}


def test_ratios_are_taken_within_a_repeat(report, record):
    """The machine is half as fast in the second repeat: the ratios do not see it."""
    records = [record("paceline", i, 2.0 * slow) for i, slow in enumerate((1, 2, 1))]
    records += [record("llama-server", i, 3.0 * slow) for i, slow in enumerate((1, 2, 1))]
    rows = only_cell(report, records)
    assert rows["paceline"].tokens_per_second == 50
    assert rows["paceline"].over_peer == pytest.approx(1.5)
    assert rows["paceline"].spread == pytest.approx(2)
    assert rows["llama-server"].over_peer == 1
    assert rows["paceline"].first_token_over_peer == 1


def test_the_best_of_the_peer_is_its_fastest_setting(report, record):
    records = [
        record("paceline+auto", 0, 1.0, drafted=10, accepted=4),
        record("paceline", 0, 2.0),
        record("llama-server", 0, 2.0),
        record("llama-server+n3p0", 0, 0.8),
        record("llama-server+n8p0", 0, 4.0),
    ]
    row = only_cell(report, records)["paceline+auto"]
    assert row.over_best == pytest.approx(0.8)
    assert row.over_peer == pytest.approx(2)
    assert row.over_plain == pytest.approx(2)
    assert row.acceptance == pytest.approx(0.4)


def test_without_the_peer_there_is_nothing_to_compare_with(report, record):
    row = only_cell(report, [record("paceline", 0, 2.0)])["paceline"]
    assert (row.over_peer, row.over_best, row.first_token_over_peer, row.acceptance) == (None,) * 4
    assert row.over_plain == 1


def test_other_texts_are_counted(report, record):
    records = [record("llama-server", 0, 1.0), record("paceline", 0, 1.0), record("paceline", 1, 1.0, text="y")]
    assert only_cell(report, records)["paceline"].same_text == (2, 4)


def test_a_table_has_a_column_for_every_heading(report, record):
    records = [record("paceline", 0, 1.0, other_cores=0.4), record("llama-server+n3", 0, 2.0, drafted=4, accepted=1)]
    title, _, *table = report.tables(records).strip().splitlines()
    assert title == "### F16, code, 1 stream, temperature 0"
    assert len({line.count("|") for line in table}) == 1
    assert "0.40" in table[2]
    assert "2.00x" in table[2]


# Verdicts


def test_each_bar_is_judged_by_the_median_of_the_repeats_ratios(report, record):
    records = [record("llama-server", i, 2.0, first=0.1) for i in range(3)]
    records += [record("paceline", i, wall, first=0.2) for i, wall in enumerate((1.9, 2.5, 1.8))]
    records += [record("llama-server+n3p0", i, 1.0) for i in range(3)]
    records += [record("paceline+auto", i, 1.01) for i in range(3)]
    ((_, judged),) = report.verdicts(records).items()
    found = {v.bar: (round(v.figure, 3), v.held) for v in judged}
    assert found == {
        "auto over the peer's best": (0.99, False),
        "auto over own no draft": (1.881, True),
        "speed over the peer, no draft": (1.053, True),
        "first token over the peer's, no draft": (2.0, False),
    }
    table = report.verdict_table(records)
    assert table.startswith("2 of 4 bars held.")
    assert table.count("**missed**") == 2
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_what_was_not_measured_is_not_judged(report, record):
    records = [record("paceline", 0, 1.0), record("paceline+auto", 0, 1.02), record("llama-server", 1, 1.0)]
    ((_, judged),) = report.verdicts(records).items()
    assert [v.bar for v in judged] == ["auto over own no draft"]
    assert judged[0].held
    assert report.verdict_table([record("llama-server", 0, 1.0)]) == ""


def test_each_cell_has_the_peer_of_its_engine(report, record):
    names = ("paceline", "mlx_lm.server", "paceline+auto", "mlx_lm.server+n3")
    records = [record(name, 0, wall) for name, wall in zip(names, (2.0, 2.2, 1.0, 1.5), strict=True)]
    found = only_cell(report, records)
    assert found["paceline"].over_peer == pytest.approx(1.1)
    assert found["paceline+auto"].over_best == pytest.approx(1.5)
    assert "| over mlx_lm.server |" in report.tables(records)
    assert report.verdict_table(records).startswith("4 of 4 bars held.")


def test_how_much_of_the_matrix_was_measured_is_said(report, record):
    records = [record("paceline", repeat, 1.0) for repeat in (0, 2)]
    cell = report.Cell("F16", "prose", 1, 0.0)
    records += [report.Record(cell, "paceline", 0, records[0].run, 0.0)]
    said = report.coverage(records, 72)
    assert said == "2 of the matrix's 72 cells were measured: 1 in 1 repeat, 1 in 2 repeats.\n"
    assert report.coverage([], 72) == ""


def test_records_survive_their_file(report, record):
    made = record("paceline+n3", 2, 1.5, drafted=3)
    assert report.Record.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_percentiles(report):
    values = list(range(100, 0, -1))
    assert [report.percentile(values, share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    assert isnan(report.percentile([], 0.5))


# Contenders and the peer's flags


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("paceline", {"model": "big"}),
        ("paceline+auto", {"model": "big", "draft_model": "small"}),
        ("paceline+n3", {"model": "big", "draft_model": "small", "speculative": {"numDraftTokensExact": 3}}),
        (
            "paceline+n8p0.75",
            {
                "model": "big",
                "draft_model": "small",
                "speculative": {"maxTokensToDraft": 8, "minContinueDraftingProbability": 0.75},
            },
        ),
        ("llama-server+n8p0.75", {}),
    ],
)
def test_what_a_contender_asks_for(bench, tmp_path, name, body):
    module = bench("contenders")
    models = module.Models(tmp_path, tmp_path, "big", "small", tmp_path)
    asked = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 7}
    assert module.contender(name).body(models) == asked | body


def test_no_seed_keeps_mlx_requests_out_of_a_batch(bench, tmp_path):
    module = bench("contenders")
    models = module.Models(tmp_path, tmp_path, "big", "small", tmp_path)
    assert "seed" not in module.contender("mlx_lm.server+n3").body(models)


def test_a_sitting_has_one_peer(bench):
    with pytest.raises(UsageError, match=r"the peer is mlx_lm\.server"):
        bench("contenders").contenders(["paceline", "llama-server"], "mlx_lm.server")


def test_who_has_to_learn_how_far_to_draft(bench):
    names = ["paceline", "paceline+auto", "paceline+n3", "paceline+n8p0.75", "llama-server+n3p0", "llama-server"]
    learning = [name for name in names if bench("contenders").contender(name).learns]
    assert learning == ["paceline+auto", "paceline+n8p0.75"]


@pytest.mark.parametrize(
    "name", ["", "ollama", "paceline+", "paceline+n0", "llama-server+auto", "paceline+n3p", "mlx_lm.server+n3p0.5"]
)
def test_a_name_that_means_nothing_is_refused(bench, name):
    with pytest.raises(UsageError):
        bench("contenders").contender(name)


def test_the_grid_is_the_peer_s_fifteen_settings(bench):
    names = [c.name for c in bench("contenders").contenders(["paceline", "grid", "llama-server+n3p0", "paceline"])]
    assert len(names) == len(set(names)) == 16
    assert {"paceline", "llama-server+n2p0", "llama-server+n16p0.75"} <= set(names)


def test_the_peer_is_built_as_the_runtime_was(bench):
    settings = {"cmake.define.GGML_NATIVE": "ON", "cmake.define.LLAVA_BUILD": "OFF", "build.verbose": "true"}
    package = Package("llama-cpp-python", "0.3.36", ("00",), source=True)
    recipe = Recipe((package,), (), {"llama-cpp-python": settings})
    release = Release("llama.cpp", "0.3.36", "any-cpu", ("gguf",), Requirements(), recipe)
    assert bench("peer").source_of(release) == bench("peer").Source(package, {"GGML_NATIVE": "ON"})


def test_one_row_says_how_a_cell_stands(bench, record):
    standing = bench("standing")
    walls = {"paceline": 2.02, "llama-server": 2.0, "llama-server+n3p0": 1.0, "paceline+auto": 1.25}
    records = [record(name, 0, wall, gap=0.02 if name == "paceline" else 0.04) for name, wall in walls.items()]
    head, _, *lines = standing.cell_table(records).splitlines()
    names, cells = ([c.strip() for c in line.strip("|").split("|")] for line in (head, lines[0]))
    assert len(names) == len(cells)
    assert cells[4:7] == ["50.0", "49.5", "0.99x"]
    assert (names[8], *cells[8:10]) == ("gap p50/p99 ms", "20/60", "0.50x/0.50x")
    assert cells[10:15] == ["100.0", "n3p0", "80.0", "1.62x", "**0.80x**"]
    assert (names[15], cells[15]) == ("its gap p50/p99 ms", "40/120")


def test_gaps_over_the_peer_s_are_left_out_where_it_was_not_measured(bench, record):
    line = bench("standing").cell_table([record("paceline", 0, 1.0)]).splitlines()[2]
    assert [c.strip() for c in line.strip("|").split("|")][8:10] == ["10/30", ""]


def test_bars_are_counted_and_the_worst_place_is_named(bench, record):
    standing = bench("standing")
    by_bar = {s.bar: s for s in standing.of_matrix([record("paceline", 0, 2.02), record("llama-server", 0, 2.0)])}
    speed = by_bar["speed over the peer, no draft"]
    assert (speed.held, speed.close, speed.worst) == (0, 1, "F16, code, 1 stream, temperature 0")
    upwards = standing.Standing("first token", None, 1.0, {"a": 0.9, "b": 1.1, "c": 1.01})
    assert (upwards.held, upwards.close, upwards.worst) == (1, 1, "b")


def test_a_runtime_that_was_not_built_here_has_no_peer(bench):
    package = Package("llama-cpp-python", "0.3.36", ("00",))
    release = Release("llama.cpp", "0.3.36", "any-cpu", ("gguf",), Requirements(), Recipe((package,)))
    with pytest.raises(PacelineError, match="not built from source"):
        bench("peer").source_of(release)


def test_every_prompt_of_a_session_is_another(bench):
    some = bench("session").some
    asked = [*some(["a", "b", "c"], 4, first=0), *some(["a", "b", "c"], 4, first=4)]
    assert asked == ["a", "b", "c", "a (1)", "b (1)", "c (1)", "a (2)", "b (2)"]


# The client


CHUNKS = {
    "paceline": [
        {"choices": [{"text": "de"}]},
        {"choices": [{"text": "f"}]},
        {
            "choices": [{"text": "", "finish_reason": "stop"}],
            "stats": {"total_draft_tokens_count": 6, "accepted_draft_tokens_count": 2},
        },
        {"choices": [], "usage": {"completion_tokens": 3}},
    ],
    "llama-server": [
        {"choices": [{"text": "de"}]},
        {"choices": [{"text": "f"}]},
        {
            "choices": [{"text": "", "finish_reason": "stop"}],
            "usage": {"completion_tokens": 3},
            "timings": {"draft_n": 6, "draft_n_accepted": 2},
        },
    ],
    "fails": [{"choices": [{"text": "de"}]}, {"error": {"message": "the worker died"}}],
}


@pytest.fixture(scope="module")
def url():
    """A server that streams the chunks of the model that is asked for, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["model"] not in CHUNKS:
                self.send_error(404, "no such model")
                return
            self.send_response(200)
            self.end_headers()
            for chunk in CHUNKS[body["model"]]:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("model", ["paceline", "llama-server"])
@pytest.mark.parametrize("streams", [1, 3])
def test_both_servers_are_read_alike(client, url, model, streams):
    run = asyncio.run(client.ask_all(url, ["a", "b", "c", "d"], {"model": model}, streams))
    assert len(run.answers) == 4
    assert {(a.text, a.tokens, a.drafted, a.accepted) for a in run.answers} == {("def", 3, 6, 2)}
    assert run.tokens == 12
    assert len(run.gaps_s) == 4
    assert all(0 < first <= run.wall_s for first in run.first_token_s)
    assert run.acceptance == pytest.approx(1 / 3)


@pytest.mark.parametrize(("model", "said"), [("fails", "the worker died"), ("missing", "404")])
def test_a_failed_answer_is_no_figure(client, url, model, said):
    with pytest.raises(PacelineError, match=said):
        asyncio.run(client.ask_all(url, ["a"], {"model": model}, 1))


def test_what_the_figures_were_taken_on_is_said(bench):
    said = bench("machine").describe_machine()
    assert {"date", "paceline", "processor", "memory", "compiler"} <= set(said)
    assert all(said.values())
