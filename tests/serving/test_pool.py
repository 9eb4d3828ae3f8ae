"""Which models are loaded: first use, leases, drafts, eviction, death. Every worker is a real process."""

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest

from paceline.errors import (
    DoesNotFitError,
    InUseError,
    NotFoundError,
    OverloadedError,
    PairError,
    RequestError,
    UnsupportedError,
    WorkerDied,
    WorkerError,
)
from paceline.loading import LoadConfig, LoraAdapter, MemoryEstimate
from paceline.serving.client import Device, WorkerClient
from paceline.serving.generation import (
    Completion,
    ContextOverflow,
    DraftKnobs,
    GenerateParams,
    Grammar,
    GrammarKind,
    Sampling,
    StopReason,
)

PATIENCE_S = 30
SILENCE_S = 2.0
"""Time for an echo worker to start, also on a busy machine."""


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(PATIENCE_S):
            return await coroutine

    return asyncio.run(bounded())


async def answer(serving, model, params, draft=None):
    """The text, the pieces and the completion of one request."""
    async with serving.lease(model, draft=draft) as lease:
        return await collect(lease, params)


async def collect(lease, params):
    pieces, completion = [], None
    async with aclosing(lease.generate(params)) as items:
        async for item in items:
            if isinstance(item, Completion):
                completion = item
            else:
                pieces.extend(item.pieces)
    return "".join(p.text for p in pieces), pieces, completion


async def enter(lease):
    async with lease:
        pass


def workers():
    """Living worker processes of this test."""
    children = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in children if "paceline_echo_worker" in p.cmdline()]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def ask(line, **options):
    return GenerateParams(line, sampling=Sampling(temperature=0), **options)


def test_a_model_loads_when_it_is_first_asked_for_and_stays(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            assert serving.loaded() == ()
            text, _, completion = await answer(serving, cage.model(parrot), ask(line))
            assert text == line
            assert completion.stop_reason is StopReason.EOS_FOUND
            (loaded,) = serving.loaded()
            assert (loaded.model.id, loaded.running, loaded.context_length) == (parrot, 0, 4096)
            before = workers()
            await answer(serving, cage.model(parrot), ask(line))
            assert workers() == before
        assert workers() == []

    run(scenario())


def test_a_draft_is_loaded_beside_it_and_marks_its_tokens(cage, line):
    parrot, chick = cage.add("parrot"), cage.add_draft("chick", wrong_every=4)

    async def scenario():
        async with cage.serving() as serving:
            main, draft = cage.model(parrot), cage.model(chick)
            plain, _, without = await answer(serving, main, ask(line))
            text, pieces, completion = await answer(serving, main, ask(line, draft=DraftKnobs()), draft)
            assert text == plain
            record = completion.acceptance
            assert record.drafted == record.accepted + record.rejected + record.ignored
            assert record.accepted == sum(p.drafted for p in pieces) > 0
            assert record.rejected > 0
            assert 0 < record.acceptance_rate < 1
            assert without.acceptance is None
            (loaded,) = serving.loaded()
            assert loaded.draft.id == chick

    run(scenario())


def test_two_requests_with_different_drafts_get_their_own(cage, line):
    parrot = cage.add("parrot", repeat=20)
    chicks = [cage.add_draft("good"), cage.add_draft("bad", wrong_every=1)]

    async def scenario():
        async with cage.serving() as serving:
            main = cage.model(parrot)
            request = ask(line, draft=DraftKnobs(exact_tokens=4))
            answers = await asyncio.gather(
                *(answer(serving, main, request, cage.model(chicks[n % 2])) for n in range(8))
            )
            for n, (_, _, completion) in enumerate(answers):
                record = completion.acceptance
                assert (record.rejected == 0, record.accepted == 0) == ((True, False) if n % 2 == 0 else (False, True))

    run(scenario())


def test_a_draft_with_another_vocabulary_is_refused_before_anything_loads(cage):
    parrot, stranger = cage.add("parrot"), cage.add_draft("stranger", vocabulary=["To", " bee"])

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(PairError, match="word 1 differs") as caught:
                await enter(serving.lease(cage.model(parrot), draft=cage.model(stranger)))
            assert caught.value.param == "draft_model"
            assert workers() == []

    run(scenario())


def test_a_draft_the_engine_refuses_leaves_the_main_model_serving_and_says_so(cage, line):
    parrot = cage.add("parrot")
    egg = cage.add_draft("egg", faults=[{"at": "load", "do": "fail", "value": "an egg cannot speak"}])

    async def scenario():
        async with cage.serving() as serving:
            request = ask(line, draft=DraftKnobs())
            text, _, completion = await answer(serving, cage.model(parrot), request, cage.model(egg))
            assert text == line
            assert completion.acceptance is None
            assert "an egg cannot speak" in completion.draft_skipped

    run(scenario())


def test_prompt_lookup_needs_no_draft_model(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            request = ask(line, draft=DraftKnobs(model=False, lookup=True))
            text, pieces, completion = await answer(serving, cage.model(parrot), request)
            assert text == line
            assert completion.draft_skipped is None
            record = completion.acceptance
            assert record.lookup.drafted == record.drafted > 0
            assert record.lookup.accepted == record.accepted == sum(p.drafted for p in pieces) > 0

    run(scenario())


def test_prompt_lookup_goes_on_without_a_draft_the_engine_refuses(cage, line):
    parrot = cage.add("parrot")
    egg = cage.add_draft("egg", faults=[{"at": "load", "do": "fail", "value": "an egg cannot speak"}])

    async def scenario():
        async with cage.serving() as serving:
            request = ask(line, draft=DraftKnobs(lookup=True))
            text, _, completion = await answer(serving, cage.model(parrot), request, cage.model(egg))
            assert text == line
            assert completion.acceptance.lookup.accepted > 0
            assert "an egg cannot speak" in completion.draft_skipped

    run(scenario())


@pytest.mark.parametrize("draft", [None, DraftKnobs(exact_tokens=3)])
def test_log_probabilities_come_with_their_tokens(cage, line, draft):
    parrot, chick = cage.add("parrot"), cage.add_draft("chick", wrong_every=4)

    async def scenario():
        async with cage.serving() as serving:
            request = ask(line, logprobs=2, draft=draft)
            _, pieces, _ = await answer(serving, cage.model(parrot), request, draft and cage.model(chick))
            assert b"".join(p.logprob.bytes for p in pieces).decode() == line
            for piece in pieces:
                assert piece.logprob.token == piece.token == piece.logprob.top[0].token
                assert 0 >= piece.logprob.logprob > piece.logprob.top[1].logprob

    run(scenario())


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"grammar": Grammar(GrammarKind.JSON_SCHEMA, {"type": "object"})}, "grammar", "JSON schema"),
        ({"context_overflow": ContextOverflow.ROLLING_WINDOW}, "context_overflow", "end of the context"),
    ],
)
def test_what_the_worker_s_features_lack_is_refused_and_said(cage, line, asked, param, words):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(UnsupportedError, match=f"the engine echo 1.0.0 .*{words}") as caught:
                await answer(serving, cage.model(parrot), ask(line, **asked))
            assert caught.value.param == param
            assert "no release that is known and runs here can do it" in caught.value.help
            (loaded,) = serving.loaded()
            assert set(loaded.features) == {"generate", "draft", "tokenize", "logprobs", "lookup"}
            assert (await answer(serving, cage.model(parrot), ask(line)))[0] == line

    run(scenario())


def test_the_release_that_has_what_is_lacking_is_named(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving(way_to=lambda feature, runtime: f"{runtime.engine} 2 has {feature}") as serving:
            with pytest.raises(UnsupportedError) as caught:
                await answer(serving, cage.model(parrot), ask(line, grammar=Grammar(GrammarKind.JSON_SCHEMA, {})))
            assert caught.value.help == "leave the field out; echo 2 has grammar"

    run(scenario())


def test_tokens_and_their_text_are_the_worker_s(cage, line, monkeypatch):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            model = cage.model(parrot)
            tokens = await serving.tokenize(model, line)
            assert len(tokens) == len(line.split())
            assert await serving.detokenize(model, tokens) == line
            with pytest.raises(RequestError) as caught:
                await serving.detokenize(model, [999_999])
            assert caught.value.param == "tokens"
            (loaded,) = serving.loaded()
            assert (loaded.model.id, loaded.running) == (parrot, 0)
        monkeypatch.setattr(WorkerClient, "initialize", without_tokens(WorkerClient.initialize))
        async with cage.serving() as serving:
            with pytest.raises(UnsupportedError, match="does not tell the tokens") as caught:
                await serving.tokenize(model, line)
            assert caught.value.param == "model"

    def without_tokens(initialize):
        async def answer(client):
            info = await initialize(client)
            return replace(info, features=tuple(f for f in info.features if f != "tokenize"))

        return answer

    run(scenario())


def test_a_draft_for_a_worker_that_takes_none_is_left_out_and_the_release_that_takes_one_named(cage, line, monkeypatch):
    parrot, finch = cage.add("parrot"), cage.add_draft("finch")
    initialize = WorkerClient.initialize

    async def without_drafts(client):
        info = await initialize(client)
        return replace(info, features=tuple(f for f in info.features if f != "draft"))

    monkeypatch.setattr(WorkerClient, "initialize", without_drafts)

    async def scenario():
        async with cage.serving(way_to=lambda feature, runtime: f"{runtime.engine} 2 has {feature}") as serving:
            params = ask(line, draft=DraftKnobs())
            text, _, completion = await answer(serving, cage.model(parrot), params, cage.model(finch))
            assert text == line
            assert completion.draft_skipped.endswith("cannot use a draft model; echo 2 has draft")

    run(scenario())


def test_a_model_the_engine_refuses_is_an_error_and_leaves_no_process(cage):
    egg = cage.add("egg", faults=[{"at": "load", "do": "fail", "value": "an egg cannot speak"}])

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(WorkerError, match="an egg cannot speak"):
                await enter(serving.lease(cage.model(egg)))
            assert serving.loaded() == ()
            assert workers() == []

    run(scenario())


def test_without_a_runtime_the_way_out_is_named(cage, tmp_path):
    from paceline.store import Store

    parrot = cage.add("parrot")
    cage.store = Store(tmp_path / "empty")

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(NotFoundError, match="no runtime is selected for echo") as caught:
                await enter(serving.lease(cage.model(parrot)))
            assert "paceline runtime get" in caught.value.help

    run(scenario())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"do": "exit", "value": 3}, "exit code 3"),
        ({"do": "signal", "value": "SIGKILL"}, "killed by signal 9 (SIGKILL"),
        ({"do": "signal", "value": "SIGSEGV"}, "killed by signal 11 (SIGSEGV"),
        ({"do": "garbage"}, "no frame"),
    ],
    ids=["exit", "SIGKILL", "SIGSEGV", "garbage"],
)
def test_a_worker_that_dies_in_a_stream_is_named_with_its_last_words_and_replaced(cage, line, fault, words):
    """The first worker dies after its third token; its last words are in the error; the next request gets a new one."""
    parrot = cage.add("parrot", faults=[{"at": 2, "do": "log", "value": "I am dying"}, {"at": 3, **fault}])
    finch = cage.add("finch", repeat=50)

    async def scenario():
        async with cage.serving() as serving:
            other = asyncio.create_task(answer(serving, cage.model(finch), ask(line)))
            got = []

            async def listen():
                async with serving.lease(cage.model(parrot)) as lease:
                    async for item in lease.generate(ask(line)):
                        got.extend(item.pieces)

            with pytest.raises(WorkerDied) as caught:
                await listen()
            assert 1 <= len(got) <= 4
            assert words in caught.value.message
            assert "I am dying" in caught.value.log_tail
            assert (await other)[0].startswith(line)
            text, _, completion = await answer(serving, cage.model(parrot), ask(line, max_tokens=2))
            assert text == line[: len(text)]
            assert completion.completion_tokens == 2

    run(scenario())


def test_a_worker_that_dies_idle_is_replaced_without_an_error(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            await answer(serving, cage.model(parrot), ask(line))
            (worker,) = workers()
            worker.kill()
            await until(lambda: serving.loaded() == ())
            assert (await answer(serving, cage.model(parrot), ask(line)))[0] == line

    run(scenario())


def test_a_model_whose_worker_died_loads_otherwise(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            await serving.load(cage.model(parrot))
            (worker,) = workers()
            worker.kill()
            await until(lambda: serving.loaded() == ())
            loaded = await serving.load(cage.model(parrot), config=LoadConfig(context_length=128))
            assert loaded.context_length == 128
            assert len(workers()) == 1

    run(scenario())


def test_leaving_a_stream_cancels_the_generation(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    parrot = cage.add("parrot", repeat=100, faults=[{"at": "step", "do": "gate", "value": str(gate)}])

    async def scenario():
        async with cage.serving() as serving:
            (gate / "go-1").touch()
            async with serving.lease(cage.model(parrot)) as lease, aclosing(lease.generate(ask(line))) as items:
                await anext(items)
            # The next request is answered although the first had hundreds of steps behind a closed gate.
            (gate / "go-1").touch()
            (gate / "go").touch()
            text, _, _ = await answer(serving, cage.model(parrot), ask(line, max_tokens=3))
            assert text == "To be or"

    run(scenario())


def test_cancelling_the_task_gives_the_lease_back(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    parrot = cage.add("parrot", faults=[{"at": "step", "do": "gate", "value": str(gate)}])

    async def scenario():
        async with cage.serving() as serving:
            task = asyncio.create_task(answer(serving, cage.model(parrot), ask(line)))
            await until(lambda: (gate / "at-1").exists())
            assert serving.loaded()[0].running == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert serving.loaded()[0].running == 0
            (gate / "go").touch()
            assert (await answer(serving, cage.model(parrot), ask(line)))[0] == line

    run(scenario())


def test_many_requests_at_once_are_all_answered(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            answers = await asyncio.gather(*(answer(serving, cage.model(parrot), ask(line)) for _ in range(32)))
            assert {text for text, _, _ in answers} == {line}
            assert len(workers()) == 1

    run(scenario())


def test_a_request_beyond_the_worker_s_queue_is_refused_with_a_way_out(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    slow = cage.add("slow", faults=[{"at": "step", "do": "gate", "value": str(gate)}])

    async def scenario():
        async with cage.serving() as serving:
            first = asyncio.create_task(answer(serving, cage.model(slow), ask(line)))
            await until(lambda: (gate / "at-1").exists())
            others = [asyncio.create_task(answer(serving, cage.model(slow), ask(line))) for _ in range(80)]
            done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            error = done.pop().exception()
            assert isinstance(error, OverloadedError)
            assert error.help
            (gate / "go").touch()
            ended = await asyncio.gather(first, *others, return_exceptions=True)
            assert {item[0] for item in ended if not isinstance(item, OverloadedError)} == {line}

    run(scenario())


@pytest.mark.parametrize("way", ["load", "default"])
def test_the_length_of_the_queue_is_told_to_the_worker(cage, line, tmp_path, way):
    gate = tmp_path / "gate"
    gate.mkdir()
    slow = cage.add("slow", faults=[{"at": "step", "do": "gate", "value": str(gate)}])
    short = LoadConfig(queue=1)

    async def scenario():
        async with cage.serving(defaults=short if way == "default" else None) as serving:
            loaded = await serving.load(cage.model(slow), config=short if way == "load" else None)
            assert loaded.config.queue == 1
            first = asyncio.create_task(answer(serving, cage.model(slow), ask(line)))
            await until(lambda: (gate / "at-1").exists())
            others = [asyncio.create_task(answer(serving, cage.model(slow), ask(line))) for _ in range(3)]
            while sum(task.done() for task in others) < 2:
                await asyncio.wait([t for t in others if not t.done()], return_when=asyncio.FIRST_COMPLETED)
            (gate / "go").touch()
            ended = await asyncio.gather(first, *others, return_exceptions=True)
            assert sum(isinstance(item, OverloadedError) for item in ended) == 2

    run(scenario())


def test_more_models_than_places_take_turns_and_the_longest_unused_goes(cage, line):
    names = [cage.add(f"bird{n}") for n in range(4)]

    async def scenario():
        async with cage.serving(max_loaded=2) as serving:
            for name in (names[0], names[1], names[0], names[2]):
                assert (await answer(serving, cage.model(name), ask(line)))[0] == line
            assert {m.model.id for m in serving.loaded()} == {names[0], names[2]}
            answers = await asyncio.gather(*(answer(serving, cage.model(names[n % 4]), ask(line)) for n in range(16)))
            assert {text for text, _, _ in answers} == {line}
            assert len(serving.loaded()) <= 2

    run(scenario())


def test_a_running_model_is_never_evicted_the_next_waits(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    slow = cage.add("slow", faults=[{"at": "step", "do": "gate", "value": str(gate)}])
    other = cage.add("other")

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            first = asyncio.create_task(answer(serving, cage.model(slow), ask(line)))
            await until(lambda: (gate / "at-1").exists())
            second = asyncio.create_task(answer(serving, cage.model(other), ask(line)))
            done, _ = await asyncio.wait({second}, timeout=0.2)
            assert not done
            assert [m.model.id for m in serving.loaded()] == [slow]
            (gate / "go").touch()
            assert (await first)[0] == line
            assert (await second)[0] == line

    run(scenario())


def test_a_model_loaded_on_purpose_takes_no_place_and_stays(cage, line):
    kept, others = cage.add("kept"), [cage.add("one"), cage.add("two")]

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            loaded = await serving.load(cage.model(kept), config=LoadConfig(context_length=512))
            assert loaded.context_length == 512
            for name in others:
                await answer(serving, cage.model(name), ask(line))
            assert {m.model.id for m in serving.loaded()} == {kept, "two"}

    run(scenario())


def test_another_context_length_loads_again_after_the_running_requests(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    parrot = cage.add("parrot", faults=[{"at": "step", "do": "gate", "value": str(gate)}])

    async def scenario():
        async with cage.serving() as serving:
            running = asyncio.create_task(answer(serving, cage.model(parrot), ask(line)))
            await until(lambda: (gate / "at-1").exists())
            loading = asyncio.create_task(serving.load(cage.model(parrot), config=LoadConfig(context_length=128)))
            done, _ = await asyncio.wait({loading}, timeout=0.2)
            assert not done
            (gate / "go").touch()
            assert (await running)[0] == line
            assert (await loading).context_length == 128

    run(scenario())


def test_a_context_longer_than_the_model_s_is_refused(cage):
    parrot = cage.add("parrot", context_length=256)

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(RequestError, match="at most 256") as caught:
                await serving.load(cage.model(parrot), config=LoadConfig(context_length=257))
            assert caught.value.param == "context_length"
            assert (await serving.load(cage.model(parrot), config=LoadConfig(context_length=256))).context_length == 256

    run(scenario())


def test_a_loaded_model_stays_as_it_is_unless_it_is_to_be_otherwise(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving(defaults=LoadConfig(context_length=512)) as serving:
            model = cage.model(parrot)
            first = await serving.load(model)
            assert (first.context_length, first.slots) == (512, 1)
            for same in (None, LoadConfig(), LoadConfig(context_length=512, parallel=1)):
                assert (await serving.load(model, config=same)).load_s == first.load_s
            other = await serving.load(model, config=LoadConfig(context_length=64))
            assert (other.context_length, other.config) == (64, LoadConfig(context_length=64))
            assert (await serving.load(model)).load_s == other.load_s
            assert (await answer(serving, model, ask(line)))[0] == line
            await serving.unload(model.id)
            assert (await serving.load(model)).context_length == 512

    run(scenario())


def test_what_an_engine_cannot_do_is_refused_by_name_and_left_out_of_defaults(cage, tmp_path):
    parrot = cage.add("parrot", context_length=256)

    async def scenario():
        async with cage.serving(defaults=LoadConfig(context_length=4096, gpu_layers=3)) as serving:
            model = cage.model(parrot)
            for _ in range(2):  # loaded and not
                with pytest.raises(RequestError, match=r"echo .* has no load option mlock") as caught:
                    await serving.load(model, config=LoadConfig(mlock=True))
                assert caught.value.param == "mlock"
                loaded = await serving.load(model)
                assert (loaded.context_length, loaded.config) == (256, LoadConfig(context_length=256))
            for path in (tmp_path / "absent.gguf", model.path.relative_to(tmp_path)):
                with pytest.raises(RequestError, match="not the full path of an adapter") as caught:
                    await serving.load(model, config=LoadConfig(lora=(LoraAdapter(path),)))
                assert caught.value.param == "lora"
            assert (await serving.load(model)).load_s == loaded.load_s

    run(scenario())


@pytest.fixture
def weighed(cage):
    """A cage whose engine says that each token of context takes a MiB."""
    echo = cage.plugins.engine("echo")

    class Weighing(type(echo)):
        def estimate(self, model, config, *, runtime, draft=False):
            context = config.context_length or 4096
            return MemoryEstimate(0, context << 20, 0, context_length=context)

    return replace(cage, plugins=replace(cage.plugins, engines={"echo": Weighing()}))


def test_what_does_not_fit_is_refused_and_what_was_loaded_stays(weighed, line, monkeypatch):
    monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "2GiB")
    parrot = weighed.add("parrot")

    async def scenario():
        async with weighed.serving() as serving:
            model = weighed.model(parrot)
            with pytest.raises(DoesNotFitError, match=r"would take 4.0 GiB .* 2.0 GiB of memory is") as caught:
                await answer(serving, model, ask(line))
            assert "context_length 2048 fits" in caught.value.help
            assert serving.loaded() == ()
            small = await serving.load(model, config=LoadConfig(context_length=512))
            with pytest.raises(DoesNotFitError):
                await serving.load(model, config=LoadConfig(context_length=4096))
            assert (await serving.load(model)).load_s == small.load_s
            assert (await answer(serving, model, ask(line)))[0] == line
            forced = await serving.load(model, config=LoadConfig(context_length=4096), force=True)
            assert forced.context_length == 4096
            (worker,) = workers()
            worker.kill()
            await until(lambda: serving.loaded() == ())
            assert (await answer(serving, model, ask(line)))[0] == line
        async with weighed.serving(check_memory=False) as serving:
            assert (await answer(serving, model, ask(line)))[0] == line

    run(scenario())


def test_a_draft_that_does_not_fit_is_left_out(weighed, line, monkeypatch):
    parrot, finch = weighed.add("parrot"), weighed.add_draft("finch")

    async def scenario():
        async with weighed.serving() as serving:
            await serving.load(weighed.model(parrot), config=LoadConfig(context_length=512))
            monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "511MiB")
            text, _, completion = await answer(
                serving, weighed.model(parrot), ask(line, draft=DraftKnobs()), weighed.model(finch)
            )
            assert text == line
            assert completion.acceptance is None
            assert "the draft finch does not fit: it would take 512.0 MiB" in completion.draft_skipped

    run(scenario())


def test_a_draft_that_does_not_fit_leaves_the_one_that_is_there(weighed, line, monkeypatch):
    parrot, finch, wren = weighed.add("parrot"), weighed.add_draft("finch"), weighed.add_draft("wren")

    async def scenario():
        async with weighed.serving() as serving:

            async def skipped(draft):
                request = ask(line, draft=DraftKnobs())
                return (await answer(serving, weighed.model(parrot), request, weighed.model(draft)))[2].draft_skipped

            await serving.load(weighed.model(parrot), config=LoadConfig(context_length=512))
            assert await skipped(finch) is None
            monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "100MiB")  # beside them
            assert "the draft wren does not fit" in await skipped(wren)
            assert serving.loaded()[0].draft.id == finch
            assert await skipped(finch) is None

    run(scenario())


def test_a_draft_may_have_the_memory_of_the_one_it_replaces(weighed, line, monkeypatch):
    parrot, wren = weighed.add("parrot"), weighed.add_draft("wren")
    finch = weighed.add_draft("finch", memory={"cache_bytes": 400 << 20, "weights_bytes": 20 << 20})
    egg = weighed.add_draft("egg", faults=[{"at": "load", "do": "fail", "value": "an egg cannot speak"}])

    async def scenario():
        async with weighed.serving() as serving:

            async def skipped(draft):
                request = ask(line, draft=DraftKnobs())
                return (await answer(serving, weighed.model(parrot), request, weighed.model(draft)))[2].draft_skipped

            main = weighed.model(parrot)
            await serving.load(main, config=LoadConfig(context_length=512))
            assert await skipped(finch) is None
            monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "91MiB")
            assert "511.0 MiB of memory is available" in await skipped(wren)
            with pytest.raises(DoesNotFitError, match=r"511\.0 MiB of memory is available"):
                await serving.load(main, config=LoadConfig(context_length=1024))
            monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "92MiB")
            assert await skipped(wren) is None
            assert "does not fit" in await skipped(finch)  # wren does not say what it took
            monkeypatch.delenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE")
            assert await skipped(finch) is None
            assert "an egg cannot speak" in await skipped(egg)
            monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "92MiB")
            assert "does not fit" in await skipped(wren)  # finch went for the egg

    run(scenario())


def test_who_leaves_while_a_draft_waits_to_be_loaded_holds_nobody_up(cage, line, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    parrot = cage.add("parrot", repeat=20, faults=[{"at": "step", "do": "gate", "value": str(gate)}])
    finch, wren = cage.add_draft("finch"), cage.add_draft("wren")

    async def scenario():
        async with cage.serving() as serving:
            main, (go, at) = cage.model(parrot), (gate / "go", gate / "at-1")
            go.touch()
            await answer(serving, main, ask(line, draft=DraftKnobs()), cage.model(finch))
            go.unlink()
            at.unlink()
            running = asyncio.create_task(answer(serving, main, ask(line)))
            await until(at.exists)
            client = serving._places.get(parrot).worker.client

            async def waiting():
                return (await client.call("health", {}))["waiting"]

            asked = asyncio.create_task(answer(serving, main, ask(line, draft=DraftKnobs()), cage.model(wren)))
            while not await waiting():
                pass
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while await waiting():
                pass
            assert not running.done()
            go.touch()
            assert (await running)[0].startswith(line)
            assert (await answer(serving, main, ask(line, draft=DraftKnobs()), cage.model(finch)))[2].acceptance

    run(scenario())


def test_what_is_free_on_gpus_is_asked_anew_for_a_draft_and_another_configuration(weighed, line, monkeypatch):
    echo = weighed.plugins.engine("echo")

    class OnGpu(type(echo)):
        def estimate(self, model, config, *, runtime, draft=False):
            found = super().estimate(model, config, runtime=runtime, draft=draft)
            return replace(found, on_gpu=found.total, gpus=(found.total,) if draft else ())

    weighed = replace(weighed, plugins=replace(weighed.plugins, engines={"echo": OnGpu()}))
    parrot, finch = weighed.add("parrot"), weighed.add_draft("finch")
    free = [2 << 30, 1 << 30]
    initialize = WorkerClient.initialize

    async def with_gpus(client):
        info = await initialize(client)
        return replace(
            info, devices=tuple(Device(f"GPU{n}", "gpu", 4 << 30, None, size) for n, size in enumerate(free))
        )

    monkeypatch.setattr(WorkerClient, "initialize", with_gpus)

    async def scenario():
        async with weighed.serving() as serving:
            main, draft = weighed.model(parrot), weighed.model(finch)
            loaded = await serving.load(main, config=LoadConfig(context_length=2560))
            free[:] = [2 << 30, 511 << 20]
            with pytest.raises(DoesNotFitError, match=r"2\.5 GiB on GPUs are available"):
                await serving.load(main, config=LoadConfig(context_length=4096))
            assert serving.loaded()[0].load_s == loaded.load_s
            _, _, completion = await answer(serving, main, ask(line, draft=DraftKnobs()), draft)
            assert "2.0 GiB on GPU 0 is available" in completion.draft_skipped
            free[:] = [4 << 30, 0]
            _, _, completion = await answer(serving, main, ask(line, draft=DraftKnobs()), draft)
            assert completion.draft_skipped is None

    run(scenario())


def test_unloading_waits_for_what_runs_even_when_it_has_not_begun(cage, line, tmp_path):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            async with serving.lease(cage.model(parrot)) as lease:
                unloading = asyncio.create_task(serving.unload(parrot))
                done, _ = await asyncio.wait({unloading}, timeout=0.2)
                assert not done
                assert (await collect(lease, ask(line)))[0] == line
            await unloading
            assert serving.loaded() == ()
            with pytest.raises(NotFoundError, match="not loaded"):
                await serving.unload(parrot)

    run(scenario())


def test_an_idle_model_is_unloaded_after_its_time_to_live(cage, line):
    parrot, finch = cage.add("parrot"), cage.add("finch")

    async def scenario():
        async with cage.serving(ttl_s=0.05) as serving:
            await answer(serving, cage.model(parrot), ask(line))
            await until(lambda: serving.loaded() == ())
            async with serving.lease(cage.model(parrot), ttl_s=3600) as lease:
                await collect(lease, ask(line))
            await answer(serving, cage.model(finch), ask(line))
            await until(lambda: finch not in [m.model.id for m in serving.loaded()])
            assert [m.model.id for m in serving.loaded()] == [parrot]

    run(scenario())


def test_a_request_does_not_shorten_the_life_of_a_model_that_was_loaded_to_stay(cage, line):
    parrot, finch = cage.add("parrot"), cage.add("finch")

    async def scenario():
        async with cage.serving() as serving:
            await serving.load(cage.model(parrot))
            for name in (parrot, finch):
                async with serving.lease(cage.model(name), ttl_s=0.01) as lease:
                    await collect(lease, ask(line))
            await until(lambda: finch not in [m.model.id for m in serving.loaded()])
            assert [m.model.id for m in serving.loaded()] == [parrot]
            assert serving._places.get(parrot).expiring is None

    run(scenario())


def test_an_idle_time_that_ends_while_a_model_is_to_be_loaded_counts_no_more(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving(ttl_s=0.01) as serving:
            model, config = cage.model(parrot), LoadConfig(context_length=128)
            async with serving.lease(model):
                place = serving._places.get(parrot)
                await place.entry.acquire()
            loading = asyncio.create_task(serving.load(model, config=config, ttl_s=3600))
            await until(lambda: place.expiring is not None)
            place.entry.release()  # the load comes first, then the end of the idle time
            assert (await loading).context_length == 128
            await place.expiring
            assert [m.model.id for m in serving.loaded()] == [parrot]

    run(scenario())


def test_a_prompt_that_does_not_fit_is_the_request_s_error(cage, line):
    parrot = cage.add("parrot", context_length=8)

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(RequestError, match="the context 8"):
                await answer(serving, cage.model(parrot), ask(line))
            text, _, _ = await answer(serving, cage.model(parrot), ask("To be"))
            assert text == "To be"

    run(scenario())


@pytest.mark.parametrize(
    "fault",
    [{"at": 3, "do": "hang"}, {"at": 3, "do": "signal", "value": "SIGSTOP"}],
    ids=["engine", "process"],
)
def test_a_worker_that_falls_silent_is_stopped_and_replaced(cage, line, fault):
    parrot = cage.add("parrot", faults=[fault])

    async def scenario():
        async with cage.serving(patience_s=SILENCE_S) as serving:
            with pytest.raises(WorkerDied, match="sent nothing for 2 seconds; it was stopped"):
                await answer(serving, cage.model(parrot), ask(line))
            assert workers() == []
            text, _, _ = await answer(serving, cage.model(parrot), ask(line, max_tokens=2))
            assert text == line[: len(text)]

    run(scenario())


def test_a_load_without_progress_ends_and_lets_others_load(cage, line):
    snail, parrot = cage.add("snail", faults=[{"at": "load", "do": "hang"}]), cage.add("parrot")

    async def scenario():
        async with cage.serving(patience_s=SILENCE_S) as serving:
            stuck = asyncio.create_task(serving.load(cage.model(snail)))
            text, _, _ = await answer(serving, cage.model(parrot), ask(line))
            with pytest.raises(WorkerDied, match="sent nothing for 2 seconds"):
                await stuck
            assert text == line
            assert [loaded.model.id for loaded in serving.loaded()] == [cage.model(parrot).id]

    run(scenario())


def test_closing_ends_workers_that_hang(cage, line):
    parrot = cage.add("parrot", faults=[{"at": "generate", "do": "hang"}])

    async def scenario():
        async with cage.serving() as serving:
            task = asyncio.create_task(answer(serving, cage.model(parrot), ask(line)))
            await until(lambda: serving.loaded() and serving.loaded()[0].running)
            await serving.close()
            with pytest.raises(WorkerDied):
                await task
        assert workers() == []

    run(scenario())


def test_closing_ends_what_loads_and_what_waits_to(cage, line):
    snail, parrot = cage.add("snail", faults=[{"at": "load", "do": "hang"}]), cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            asked = [asyncio.create_task(answer(serving, cage.model(name), ask(line))) for name in (snail, parrot)]
            await until(workers)
            await serving.close()
            assert workers() == []
            for task in asked:
                with pytest.raises(WorkerError, match="the server ends"):
                    await task
            assert workers() == []

    run(scenario())


def test_closing_waits_for_a_worker_that_was_left_ending(cage, line):
    parrot = cage.add("parrot")

    async def scenario():
        async with cage.serving() as serving:
            await answer(serving, cage.model(parrot), ask(line))
            (worker,) = workers()
            worker.suspend()  # ends only when it is killed
            leaving = asyncio.create_task(serving.unload(parrot))
            await until(lambda: serving.loaded() == ())
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await serving.close()
            assert workers() == []

    run(scenario())


def test_signals_have_names():
    from paceline.serving.launcher import Exit

    assert "SIGABRT" in str(Exit(signal=signal.SIGABRT))
    assert str(Exit(code=70)) == "ended with exit code 70"


def test_a_loaded_model_holds_its_runtime_and_the_load_is_remembered(cage):
    cage.add("parrot")
    store = cage.store

    async def scenario():
        async with cage.serving() as serving:
            runtime = (await serving.load(cage.model("parrot"))).runtime

            assert store.in_use_by(runtime) == (os.getpid(),)
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()}"):
                store.remove(runtime, force=True)
            await serving.unload("parrot")
            assert store.in_use_by(runtime) == ()
            assert runtime.id in store.selection().worked["echo"]

    run(scenario())
