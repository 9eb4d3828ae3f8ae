"""The whole way over a real engine: clients, drafts, losslessness, cancelling, death."""

import json
import shutil
import signal
import socket
import subprocess
import time

import httpx
import psutil
import pytest

pytestmark = pytest.mark.runtime

FUNCTIONS = {
    "to_dict": "Return a dictionary representation of the object.",
    "close": "Close the connection.",
    "is_even": "Return whether n is even.",
    "merge": "Merge two sorted lists.",
    "read_lines": "Read the lines of a file.",
    "count_words": "Count the words of a text.",
}


def ask(name):
    return [{"role": "user", "content": f"Write a Python function `{name}`: {FUNCTIONS[name]}"}]


def post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json=body, timeout=120)


def chat(server, model, name="close", path="/v1/chat/completions", **options):
    answer = post(server, path, model=model, messages=ask(name), **{"max_tokens": 48, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(answer):
    return answer["choices"][0]["message"]["content"]


def events(lines):
    """The JSON of a stream's events; the final `[DONE]` is checked and left out."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(entry) for entry in data]


def paceline(server, *arguments):
    """The same `paceline` with other arguments."""
    command = [*server.process.args[:3], *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def eventually(condition, patience_s=10.0):
    end = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# Unmodified clients


def test_the_openai_sdk_talks_to_a_real_model(server, clients, pair):
    clients.openai_lists_models(server.url, pair[0])
    whole = clients.openai_chats(server.url, pair[0], temperature=0)
    assert whole
    assert clients.openai_streams(server.url, pair[0], temperature=0) == whole
    assert clients.openai_completes(server.url, pair[0])
    clients.openai_sees_errors(server.url, pair[0])


def test_llm_with_its_lm_studio_plugin_talks_to_a_real_model(server, clients, pair, tmp_path):
    clients.llm_lists_models(server.url, pair[0], tmp_path)
    assert clients.llm_chats(server.url, pair[0], tmp_path, stream=True).strip()
    assert clients.llm_chats(server.url, pair[0], tmp_path, stream=False).strip()


# The draft changes nothing but the speed


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v0/chat/completions"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 11}, {"temperature": 1.5, "seed": 3}]
)
def test_the_answer_with_a_draft_is_the_answer_without(server, pair, name, sampling, path):
    plain = chat(server, pair[0], name, path, **sampling)
    drafted = chat(server, pair[0], name, path, draft_model=pair[1], **sampling)
    assert text(drafted) == text(plain)
    assert drafted["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    stats = drafted["stats"]
    assert stats["draft_model"] == pair[1]
    assert stats["total_draft_tokens_count"] == (
        stats["accepted_draft_tokens_count"]
        + stats["rejected_draft_tokens_count"]
        + stats["ignored_draft_tokens_count"]
    )
    assert "draft_model" not in plain["stats"]


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 1.3},
        {"repeat_penalty": 1.3, "repeat_last_n": 8},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"logit_bias": {"11": -100}},
        {"top_k": 0, "top_p": 0.9},
        {"stop": ["\n", "return"]},
        {"min_p": 0.2, "temperature": 2.0},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("exact", [None, 6])
def test_whatever_the_sampling(server, pair, options, exact):
    request = {"temperature": 0.9, "seed": 5, **options}
    knobs = {"speculative": {"numDraftTokensExact": exact}} if exact else {}
    plain = chat(server, pair[0], **request)
    drafted = chat(server, pair[0], draft_model=pair[1], **knobs, **request)
    assert text(drafted) == text(plain)
    assert text(plain) != text(chat(server, pair[0], temperature=0.9, seed=5))
    assert drafted["stats"]["total_draft_tokens_count"] > 0 or not exact


def test_a_good_draft_is_accepted_often(server, pair):
    fixed = {
        "numDraftTokensExact": 4
    }  # left to itself, the worker may find that drafting for so small a model costs more
    stats = chat(server, pair[0], "is_even", temperature=0, draft_model=pair[1], speculative=fixed)["stats"]
    assert stats["accepted_draft_tokens_count"] > 5


def test_the_final_chunk_of_a_stream_has_the_counts_and_the_marks_add_up(server, pair):
    body = {
        "model": pair[0],
        "draft_model": pair[1],
        "messages": ask("is_even"),
        "temperature": 0,
        "max_tokens": 48,
        "stream": True,
        "stream_options": {"include_usage": True},
        "speculative": {"mark_drafted": True, "numDraftTokensExact": 4},
    }
    with httpx.stream("POST", f"{server.url}/api/v0/chat/completions", json=body, timeout=60) as answer:
        *chunks, last, usage = events(answer.iter_lines())
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["stats"]["accepted_draft_tokens_count"] > 0
    assert last["runtime"]["name"].startswith("llama.cpp-")
    assert last["model_info"]["format"] == "gguf"
    assert usage["usage"]["completion_tokens"] > 0
    marks = [run for chunk in chunks for choice in chunk["choices"] for run in choice.get("drafted", [])]
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert "".join(part for part, _ in marks) == said
    assert any(drafted for _, drafted in marks)


# Turns, refusals, the library


def test_the_next_turn_reuses_the_conversation_so_far(server, pair):
    messages = ask("merge")
    first = post(server, "/v1/chat/completions", model=pair[0], messages=messages, temperature=0, max_tokens=40).json()
    messages += [{"role": "assistant", "content": text(first)}, {"role": "user", "content": "Now write `split`."}]
    second = post(server, "/v1/chat/completions", model=pair[0], messages=messages, temperature=0, max_tokens=8).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"]
    assert cached < second["usage"]["prompt_tokens"]


def test_a_prompt_longer_than_the_context_is_the_client_s_error(server, pair):
    answer = post(server, "/v1/completions", model=pair[0], prompt="word " * 5000, max_tokens=4)
    assert answer.status_code == 400
    assert "2048" in answer.json()["error"]["message"]


def test_a_draft_with_another_vocabulary_is_refused_with_the_token(server, pair, shared):
    folder = server.models / "strangers" / "other"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shared / "models" / "other-vocab-1m-f16.gguf", folder / "other-vocab-1m-f16.gguf")
    assert eventually(
        lambda: any(m["id"] == "other-vocab-1m" for m in httpx.get(f"{server.url}/v1/models").json()["data"])
    )
    answer = post(server, "/v1/chat/completions", model=pair[0], draft_model="other-vocab-1m", messages=ask("close"))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("draft_model", "incompatible_draft")
    assert "token" in error["message"]


def test_a_draft_of_another_engine_is_refused(server, pair):
    draft = "paceline-coder-3m-mlx"
    answer = post(server, "/v1/chat/completions", model=pair[0], draft_model=draft, messages=ask("close"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "draft_model"
    assert "the draft is mlx" in answer.json()["error"]["message"]


# Going away


def test_the_client_going_away_stops_the_generation(server, pair):
    body = {"model": pair[0], "messages": ask("merge"), "stream": True, "logit_bias": {}, "max_tokens": 1900}
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert b"200 OK" in client.recv(4096)
    running = lambda: sum(m["running"] for m in httpx.get(f"{server.url}/health").json()["loaded"])  # noqa: E731
    assert eventually(lambda: running() == 0)


def test_no_process_outlives_a_killed_host(serve, llama_cpp_home, tmp_path, pair):
    with serve(llama_cpp_home, tmp_path) as server:
        chat(server, pair[0], max_tokens=4)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.workers()
        server.process.kill()
        server.process.wait()
        gone, alive = psutil.wait_procs(children, timeout=3)
        assert not alive
        assert gone


def test_no_process_outlives_a_host_killed_in_the_middle_of_a_stream(serve, llama_cpp_home, tmp_path, pair):
    with serve(llama_cpp_home, tmp_path) as server:
        body = {"model": pair[0], "messages": ask("merge"), "stream": True, "max_tokens": 1900}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
            next(answer.iter_lines())
            children = psutil.Process(server.process.pid).children(recursive=True)
            server.process.kill()
            server.process.wait()
        _, alive = psutil.wait_procs(children, timeout=3)
        assert not alive


def test_a_worker_killed_in_a_stream_is_an_error_within_a_second_and_the_next_request_works(
    serve, llama_cpp_home, tmp_path, pair
):
    with serve(llama_cpp_home, tmp_path) as server:
        body = {"model": pair[0], "prompt": "def add(", "stream": True, "temperature": 2, "max_tokens": 1900}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            (worker,) = server.workers()
            worker.send_signal(signal.SIGSEGV)
            killed = time.monotonic()
            last = [line for line in lines if line.startswith("data: ")][-1]
            assert time.monotonic() - killed < 1.0
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "SIGSEGV" in error["message"]
        assert chat(server, pair[0], max_tokens=4)["usage"]["completion_tokens"] == 4


def test_an_interrupt_ends_the_server_and_its_workers(serve, llama_cpp_home, tmp_path, pair):
    with serve(llama_cpp_home, tmp_path) as server:
        chat(server, pair[0], max_tokens=4)
        workers = server.workers()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(10)
        assert not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)


def test_a_taken_port_is_said(server, llama_cpp_home):
    port = server.url.rpartition(":")[2]
    done = paceline(server, "serve", "--port", port)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port 0" in done.stderr


def test_no_public_address_without_asking_who_is_there(server):
    done = subprocess.run(
        [*server.process.args[:3], "serve", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "other machines" in done.stderr
