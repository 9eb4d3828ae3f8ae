"""The dialect of chat templates, rendered in this process."""

from datetime import datetime

import pytest

from paceline.chat.template import MAX_TEMPLATE_CHARS, ChatTemplate, TemplateFailure

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(source, *messages, **variables):
    return ChatTemplate(source).render(messages or [{"role": "user", "content": "hi"}], **variables)


def test_chatml_asks_for_the_next_turn():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(CHATML, *messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  x\n  {% endif %}\n", "  x\n"),  # trim_blocks and lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}{% set x = 1 %}b{% endgeneration %}{{ x }}c", "abc"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'b': 'é'} | tojson(ensure_ascii=True, indent=1) }}", '{\n "b": "\\u00e9"\n}'),
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ tools is defined }}", "False"),
        ("{{ '<b>' }}", "<b>"),
    ],
)
def test_dialect(source, expected):
    assert render(source, bos_token="<s>", eos_token="</s>") == expected


def test_parts_are_joined_for_a_template_that_wants_strings():
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in render(CHATML, {"role": "user", "content": content})


def test_strings_become_parts_for_a_template_that_wants_parts():
    source = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }};{% endfor %}{% endfor %}"
    assert render(source, {"role": "user", "content": "hello"}) == "hello;"


def test_developer_is_system_unless_the_template_knows_it():
    source = "{% for m in messages %}{{ m.role }}{% endfor %}"
    assert render(source, {"role": "developer", "content": ""}) == "system"
    assert render(source + "{# developer #}", {"role": "developer", "content": ""}) == "developer"


@pytest.mark.parametrize(
    ("source", "line", "refused", "said"),
    [
        ("a\n{{ raise_exception('no system role') }}", 2, True, "no system role"),
        ("a\n\n{% nonsense %}", 3, False, "nonsense"),
        ("a\n{{ messages[5].content }}", 2, False, "no element 5"),
        ("{{ 1 + 'a' }}", 1, False, "TypeError"),
        ("{% macro f() %}\n{{ f() }}{% endmacro %}{{ f() }}", 2, False, "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", 1, False, "unsafe"),
        ("{{ messages.append(1) }}", 1, False, "unsafe"),
        ("{% for i in range(9999999) %}{% endfor %}", 1, False, "Range too big"),
    ],
)
def test_failures_name_the_line(source, line, refused, said):
    with pytest.raises(TemplateFailure) as failure:
        render(source)
    assert (failure.value.line, failure.value.refused) == (line, refused)
    assert said in failure.value.message


def test_too_large_a_template_is_refused():
    with pytest.raises(TemplateFailure, match="more than"):
        ChatTemplate("x" * (MAX_TEMPLATE_CHARS + 1))


def test_too_deep_a_template_is_refused():
    with pytest.raises(TemplateFailure, match="cannot be compiled"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def test_too_long_a_prompt_is_refused():
    source = "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}"
    with pytest.raises(TemplateFailure, match="the prompt has more than"):
        render(source)
