"""Rendering in child processes: what hostile templates cannot do, and every published template we have."""

import asyncio
import time
from pathlib import Path

import pytest

from paceline.chat import Renderer
from paceline.chat.child import TIME_LIMIT_S
from paceline.errors import TemplateError
from paceline.types import Model, ModelFacts, ModelKind

TEMPLATES = Path(__file__).parents[2] / "../shared/templates"
MESSAGES = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "First question"},
    {"role": "assistant", "content": "First answer"},
    {"role": "user", "content": "Second question"},
]


def model(template, bos="<s>", eos="</s>"):
    facts = ModelFacts(ModelKind.LLM, 1, chat_template=template, bos_token=bos, eos_token=eos)
    return Model("some-model", "gguf", Path("some.gguf"), "nobody", facts)


def run(scenario):
    """Run `scenario(renderer)` on a loop of its own and close the renderer."""

    async def main():
        renderer = Renderer(processes=2)
        try:
            return await scenario(renderer)
        finally:
            await renderer.close()

    return asyncio.run(main())


def failure(template):
    with pytest.raises(TemplateError) as error:
        run(lambda renderer: renderer.prompt(model(template), MESSAGES))
    return error.value


def test_a_prompt_with_the_models_own_tokens():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    prompt = run(lambda renderer: renderer.prompt(model(template), MESSAGES[-1:]))
    assert prompt == "<s>Second question</s>"


def test_characters_survive_the_way_there_and_back():
    text = 'snow ☃ \U0001f6b2 \x00 \u2028 \\ "'
    prompt = run(lambda r: r.prompt(model("{{ messages[0].content }}"), [{"role": "user", "content": text}]))
    assert prompt == text


def test_a_model_without_a_template_points_to_completions():
    error = failure(None)
    assert "some-model has no chat template" in error.message
    assert "/v1/completions" in error.help


def test_errors_name_the_model_and_the_line():
    assert failure("\n{{ raise_exception('no!') }}").message == (
        "the chat template of some-model, line 2 refuses these messages: no!"
    )
    assert failure("\n\n{% bad %}").message.startswith("the chat template of some-model failed, line 3:")


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize("template", [LOOP, DOUBLING, "{{ 10 ** (10 ** 10) }}"], ids=["loop", "doubling", "power"])
def test_a_template_that_does_not_end_is_stopped(template):
    async def scenario(renderer):
        began = time.monotonic()
        with pytest.raises(TemplateError, match="did not finish within"):
            await renderer.prompt(model(template), MESSAGES)
        took = time.monotonic() - began
        # The event loop was free all the time, and the renderer still works.
        return took, await renderer.prompt(model("fine"), MESSAGES)

    took, after = run(scenario)
    assert took < TIME_LIMIT_S + 10
    assert after == "fine"


def test_others_render_while_one_template_loops():
    async def scenario(renderer):
        hanging = asyncio.create_task(renderer.prompt(model(LOOP), MESSAGES))
        prompts = [await renderer.prompt(model("fine"), MESSAGES) for _ in range(20)]
        assert not hanging.done()
        with pytest.raises(TemplateError):
            await hanging
        return prompts

    assert run(scenario) == ["fine"] * 20


def test_a_template_cannot_take_all_memory():
    error = failure("{{ 'x' * (10 ** 11) }}")
    assert "memory" in error.message


def test_a_cancelled_request_leaves_no_answer_behind():
    async def scenario(renderer):
        await renderer.start()
        for _ in range(5):
            task = asyncio.create_task(renderer.prompt(model("stale"), MESSAGES))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return [await renderer.prompt(model(f"{i}"), MESSAGES) for i in range(5)]

    assert run(scenario) == ["0", "1", "2", "3", "4"]


def test_a_request_cancelled_in_the_middle_of_a_long_answer_ends():
    """Whatever of the answer is still in the pipe and in the buffers."""
    long = model("{{ 'x' * 8000000 }}")

    async def scenario(renderer):
        turns = 0
        while True:
            await renderer.start()
            task = asyncio.create_task(renderer.prompt(long, MESSAGES))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                return len(await task)
            task.cancel()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)
            turns += max(1, turns // 4)

    assert run(scenario) == 8000000


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="the collection of published templates is not beside the checkout")
def test_published_templates():
    """Each renders a plain conversation, or refuses it in its own words."""
    templates = sorted(TEMPLATES.glob("*.jinja"))
    assert len(templates) > 60

    async def scenario(renderer):
        refused = {}
        for path in templates:
            source = path.read_text(encoding="utf-8")
            try:
                prompt = await renderer.prompt(model(source), MESSAGES)
            except TemplateError as error:
                refused[path.name] = error.message
                prompt = await renderer.prompt(model(source), MESSAGES[1:])
            assert "First question" in prompt, path.name
            assert "Second question" in prompt, path.name
        return refused

    refused = run(scenario)
    assert all("refuses these messages" in message for message in refused.values()), refused
    assert len(refused) <= 2, refused
