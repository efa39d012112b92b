"""Chat templates: Hugging Face's own rendering at a fixed date, the text's place in it, and bounds."""

from __future__ import annotations

import io
import json
import signal
import sys

import pytest
from test_prompts import tokenizer, words

from xatlas.errors import XatlasError
from xatlas.prompts import reader as prompts_reader, render
from xatlas.prompts.reader import Reader
from xatlas.suites import Prompt

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are fine.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{%- for m in messages %}\n    {{- '<|h|>' + m['role'] + '</h>\n\n' + m['content'] | trim + '</h>' }}\n"
    "{%- endfor %}"
)
LATE_JINJA = (
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}\n  {% generation %}{{ messages[0].content }}{% endgeneration %}\n"
    "{{ {'b': 'ü<', 'a': [1]} | tojson }}{{ {'a': 1} | tojson(indent=2) }}{{ documents is none }}{{ eos_token }}"
    "{{ nothing }}{{ dict(a=1).a }}"
)


def reader(template, **more):
    return Reader(tokenizer(template=template), chat_template=True, **more)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, LATE_JINJA])
def test_a_template_is_rendered_as_hugging_face_renders_it(template):
    made = reader(template)
    turns = [{"role": "user", "content": "über {{ x }}\n<b>'s"}]
    wanted = made.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert made.chat.wrap(turns[0]["content"]).text == wanted


def test_the_date_of_a_template_is_the_settings_at_midnight_on_any_day():
    template = (
        "{{ strftime_now('%d %b %Y %H:%M:%S %s') }} {{ [1, 2, 3, 4, 5, 6, 7] | random }}|{{ messages[0].content }}"
    )
    first, again = (reader(template, template_date="2024-03-05").prompt(Prompt("p", "f", "ab")) for _ in "ab")
    tok = tokenizer()
    assert tok.decode(first.ids).removeprefix("<s>").startswith("05 Mar 2024 00:00:00 1709596800 ")
    assert first == again
    assert reader(template).prompt(Prompt("p", "f", "ab")).ids != first.ids
    with pytest.raises(XatlasError, match="is no date"):
        reader(template, template_date="tomorrow")


@pytest.mark.parametrize(
    ("template", "text", "span"),
    [
        ("Answer with the cat. [{{ messages[0].content }}] the cat", "see the cat run", (8, 11)),
        ("a[{{ messages[0].content | trim }}]", "\n a b\tc", (2, 3)),
        ("a[{{ messages[0].content.lstrip() }}]", "\n a b\n", (2, 3)),
        ("{{ bos_token }}{{ bos_token }}a[{{ messages[0].content }}]", "bab", (1, 2)),
    ],
)
def test_the_subject_lies_where_the_template_writes_the_text(template, text, span):
    made = reader(template)
    prompt = made.prompt(Prompt("p", "f", text, subject=span))
    assert words(made.tokenizer, [prompt.ids[p] for p in prompt.subject]) == list(text[slice(*span)])
    before = made.tokenizer.decode(prompt.ids[: prompt.subject[0]])
    assert before.endswith("[" + text[: span[0]].lstrip())


def test_what_a_template_trims_off_belongs_to_no_subject():
    made = reader("a[{{ messages[0].content | trim }}]")
    prompt = made.prompt(Prompt("p", "f", "\n\nab", subject=(0, 3)))
    assert words(made.tokenizer, [prompt.ids[p] for p in prompt.subject]) == ["a"]
    assert made.prompt(Prompt("p", "f", "\n\nab", subject=(0, 2))).subject == ()


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content | upper }}", "ab"),
        ("{{ messages[0].content | e }}", "a<b"),
        ("{{ messages[0].content | tojson }}", 'a"b'),
        ("{{ messages[0].content[:2] }}", "abc"),
        ("{{ messages[0].content.split('</t>')[-1] }}", "a</t>b"),
        ("{{ messages[0].content | replace('a', '') }}", "aba"),
        ("nothing of it", "of"),
    ],
)
def test_a_prompt_whose_text_the_template_changes_is_dropped(template, text):
    made = reader(template)
    assert made.prompt(Prompt("p", "f", text)) == "the chat template changes the text"


def test_a_text_that_is_written_twice_has_no_place():
    made = reader("{{ messages[0].content }}? {{ messages[0].content }}!")
    assert made.tokenizer.decode(made.prompt(Prompt("p", "f", "ab")).ids) == "<s>ab? ab!"
    assert "more than once" in made.prompt(Prompt("p", "f", "ab", subject=(0, 1)))


def test_what_the_system_says_is_said_by_the_user_where_the_template_knows_no_system():
    each = "{% for m in messages %}{{ '[' + m.role + ': ' + m.content + ']' }}{% endfor %}"
    system, *turns = [
        {"role": role, "content": text} for role, text in (("system", "s"), ("user", "u"), ("assistant", "a"))
    ]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + each
    for template, first in ((each, "[system: s][user: u]"), (refusing, "[user: s\n\nu]")):
        made = reader(template).chat
        assert made.conversations([[system, *turns], turns]) == [f"{first}[assistant: a]", "[user: u][assistant: a]"]
    never = reader("{{ raise_exception('not this') }}").chat
    for conversation in ([system, *turns], turns, turns[:1]):
        with pytest.raises(XatlasError, match=r"the chat template fails \(.*not this"):
            never.conversations([conversation])


def test_a_prompt_that_the_template_refuses_is_dropped_and_the_others_are_read():
    made = reader(
        "{% if 'no' in messages[0].content %}{{ raise_exception('not this') }}{% endif %}{{ messages[0].content }}"
    )
    found = made.suite([Prompt("a", "f", "yes"), Prompt("b", "f", "no")])
    assert found.dropped == {"b": "the chat template fails (TemplateError: not this)"}


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (LOOP, "is not done with one text after 1 s"),
        ("{{ 10 ** (10 ** 8) }}", "is not done with one text after 1 s"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "all 1 are dropped.*Range too big"),
        ("{% for i in range(99999) %}xxxxxxxxxx{% endfor %}", "it writes more than 200000 characters"),
        ("{{ 'x' * 10 ** 11 }}", "MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% if %}", "the chat template cannot be read .TemplateSyntaxError"),
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "the chat template cannot be"),
        ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "SecurityError"),
    ],
    ids=["loop", "power", "range", "output", "memory", "recursion", "syntax", "brackets", "namespace"],
)
def test_a_template_is_bounded_in_time_and_size(template, told, monkeypatch):
    monkeypatch.setattr(prompts_reader, "_SECONDS", 1)
    with pytest.raises(XatlasError, match=told) as caught:
        reader(template).suite([Prompt("p", "f", "ab")])
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_every_text_has_the_whole_time(monkeypatch, capsys):
    clock: list[float] = []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: clock.append(seconds))
    monkeypatch.setattr("resource.setrlimit", lambda which, limits: None)
    limits = {"seconds": 2, "characters": 100, "memory": 2**40}
    asked = {"template": "{{ messages[0].content }}", "variables": {}, "date": "2026-01-01", "paths": [], **limits}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({**asked, "contents": ["a", "b", "c"]})))
    render._main()
    assert [answer["text"] for answer in json.loads(capsys.readouterr().out)] == ["a", "b", "c"]
    assert clock[-4:] == [2, 2, 2, 0]


def test_a_template_is_rendered_alike_in_every_time_zone(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    found = reader("{{ strftime_now('%s') }}|{{ messages[0].content }}", template_date="2024-03-05").chat.wrap("a")
    assert found.text.startswith("1709596800|")
