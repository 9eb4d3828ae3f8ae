"""Servers that live through several cells, and what cells ask; the servers are real processes."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
host, port = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(sys.argv[1], "a") as log:
            print(json.dumps([body["max_tokens"], body["prompt"]]), file=log)
        self.send_response(200); self.end_headers()
        said = {"choices": [{"text": "x"}], "usage": {"completion_tokens": body["max_tokens"]}}
        self.wfile.write(f"data: {json.dumps(said)}\\n\\n".encode())
    def log_message(self, *_): pass
ThreadingHTTPServer((host, port), Handler).serve_forever()
"""


@pytest.fixture(scope="session")
def session(bench):
    return bench("session")


@pytest.fixture
def asking(session):
    return session.Asking(prompts=2, max_tokens=4, warm_up=3, learning=10, temperatures=[0.0, 0.8])


@pytest.fixture
def life(bench, session):
    def make(main="m", draft="d", streams=1, repeat=0):
        models = bench("contenders").Models(Path(main), Path(draft), main, draft, Path())
        return session.Life(models, streams, repeat)

    return make


@pytest.fixture
def player(bench, tmp_path):
    """Makes contenders whose servers write down what they are asked."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    @dataclass(frozen=True)
    class Player(bench("contenders").Contender):
        def running(self, models, streams, context=None):
            log = tmp_path / f"{self.name}-{len([*tmp_path.glob('*.log')])}.log"
            log.touch()
            return bench("servers").serving([sys.executable, script, log])

        def body(self, models):
            return {}

    return lambda name, drafts=False: Player(name, "paceline", drafts)


def asked(tmp_path, name):
    """What each server of a contender was asked, in the order of their starts."""
    logs = sorted(tmp_path.glob(f"{name}-*.log"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [log.read_text().splitlines() for log in logs]


def cells(bench, *kinds):
    return [bench("report").Cell("Q8_0", kind, 1, t) for kind in kinds for t in (0.0, 0.8)]


def test_a_server_answers_the_cells_of_its_life_and_only_a_draft_needs_another(
    session, asking, life, player, bench, tmp_path
):
    plain, auto = player("plain"), player("auto", drafts=True)
    quiet = session.Quiet(noise=100.0, patience_s=0.0, retries=0)
    others = psutil.Process().children()
    with session.Servers(asking) as servers:
        for draft, kinds in (("d", ("code", "prose")), ("bad", ("adversarial",))):
            now = life(draft=draft)
            servers.keep([plain, auto], now)
            for cell, contender in itertools.product(cells(bench, *kinds), (plain, auto)):
                record = servers.run(contender, cell, now, quiet)
                assert (record.contender, len(record.run.answers)) == (contender.name, 2)
        assert len([p for p in psutil.Process().children() if p not in others]) == 2
    assert [p for p in psutil.Process().children() if p not in others] == []
    assert [len(lines) for lines in asked(tmp_path, "plain")] == [1 + 6 * 2]
    assert [len(lines) for lines in asked(tmp_path, "auto")] == [3 + 4 * 2, 3 + 2 * 2]
    assert all(len(set(lines)) == len(lines) for lines in (*asked(tmp_path, "plain"), *asked(tmp_path, "auto")))


def test_a_disturbed_run_is_done_again_by_a_new_server(session, asking, life, player, bench, monkeypatch, tmp_path):
    loads = iter([0.5, 0.2, 0.3])

    class OtherWork:
        def __init__(self, measured):
            assert len(measured) == 1

        def cores(self):
            return next(loads)

    monkeypatch.setattr(session, "OtherWork", OtherWork)
    monkeypatch.setattr(session, "wait_for_quiet", lambda *_: True)
    quiet = session.Quiet(noise=0.1, patience_s=0.0, retries=2)
    with session.Servers(asking) as servers:
        record = servers.run(player("plain"), cells(bench, "code")[0], life(), quiet)
    assert record.other_cores == 0.2
    starts = asked(tmp_path, "plain")
    assert len(starts) == 3
    assert starts[0] == starts[1] == starts[2]


@pytest.mark.parametrize("change", [{"main": "n"}, {"streams": 8}, {"repeat": 1}])
def test_another_model_number_of_streams_or_repeat_needs_another_server(session, life, player, change):
    assert life().serves(player("plain"), life())
    assert not life().serves(player("plain"), life(**change))


@pytest.mark.parametrize("streams", [1, 4, 8])
def test_no_two_cells_of_a_life_ask_the_same(session, asking, bench, streams):
    kinds = bench("prompts").KINDS
    some = [bench("report").Cell("Q8_0", kind, streams, t) for kind in kinds for t in asking.temperatures]
    prompts = [p for cell in some for p in session.prompts_of(cell, asking)]
    warm_up = [bench("prompts").chat_prompt(text) for text in itertools.islice(session.unasked(), 24)]
    assert len({*prompts, *warm_up}) == len(prompts) + 24
    assert len(prompts) == len(some) * max(2, streams)
