"""Chat templates within bounds: the texts of transformers, and an end for every template."""

# ruff: noqa: E501

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from models import chat_template, template_limits

MESSAGES = [
    {"role": "system", "content": "Be brief. 🙂"},
    {"role": "user", "content": " What is <b>6*7</b>? "},
    {"role": "assistant", "content": "<think>6*7</think>\n42"},
    {"role": "user", "content": "Sure?"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# What published templates write: Qwen2.5, Llama 3, Mistral, Gemma, DeepSeek-R1, Phi and others.
PUBLISHED = [
    "{%- if tools %}{{- 'T' }}{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and "
    "not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}",
    "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- endif %}{{- bos_token }}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{% if loop.last and first is defined %}{{ '[INST] ' ~ first ~ '\\n\\n' ~ m.content ~ '[/INST]' }}"
    "{% else %}{{ m.content ~ eos_token }}{% endif %}{% endfor %}",
    "{% set ns = namespace(last='', n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
    "{% if m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set ns.last = ns.last + content %}{% continue %}{% endif %}{% if ns.n > 3 %}{% break %}"
    "{% endif %}{{ m.content.strip().replace('<b>', '').upper() }}|{{ loop.revindex }};{% endfor %}"
    "{{ ns.last }}{{ ns.n * 2 ** 3 // 3 }}{{ '%s-%d' % (ns.last, 3) }}",
    "{% macro show(m, end='.') %}{{ m.role | capitalize }}: {{ m.content | tojson }}{{ end }}"
    "{{ caller() if caller else '' }}{% endmacro %}{% for m in messages if m.role != 'system' %}"
    "{% call show(m, end='!') %} {{ loop.length }}{% endcall %}{% else %}none{% endfor %}"
    "{{ messages | map(attribute='role') | unique | join(', ') }}{{ missing | default('d') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [1, [2]] | string }}"
    "{{ {'b': 1, 'a': (2, 3)} | tojson(indent=2) }}{{ dict(a=1).items() | list }}{{ [3, 1] | sort }}"
    "{{ (messages | first).content | length }}{{ 'x' in 'xyz' and range(5)[2] }}{{ 7 / 2 - 1 }}",
    "{% generation %}{% set x %}a{% filter upper %}b{% endfilter %}{% endset %}{{ x }}{% endgeneration %}",
    "{% set c = cycler('odd', 'even') %}{% for m in messages %}{{ c.next() }}{{ loop.cycle(1, 2) }}"
    "{% for key, value in m.items() %}{{ key }}={{ value | trim }}{% endfor %}{{ loop.changed(m.role) }}"
    "{% endfor %}{{ messages[-1]['content'][:-1] }}{{ messages[1].get('name', 'no name') }}{{ none }}",
]


def rendered(template, **values):
    return template_limits.render(template, messages=MESSAGES, **SPECIAL, **values)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("template", PUBLISHED)
def test_the_text_is_that_of_transformers(template, header):
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=header, **SPECIAL
    )
    values = {"tools": None, "documents": None, "add_generation_prompt": header}
    assert rendered(template, **values) == theirs[0]


MANY = "{% for i in range(100000) %}"
BIG = "{% set x = 'a' * 8000000 %}"
STEPS, TEXT = "takes more than 500,000 steps", "text grows over 8,388,608 characters"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (f"{MANY}{MANY}{{% endfor %}}{{% endfor %}}", STEPS),
        (f"{MANY}{{% set y = range(100000) | select | list %}}{{% endfor %}}", STEPS),
        (f"{MANY}{{% if 'x' in range(100000) %}}{{% endif %}}{{% endfor %}}", STEPS),
        (f"{BIG}{MANY}{{% set y = x[1:] %}}{{% endfor %}}", STEPS),
        (f"{BIG}{MANY}{{% if x ~ '' == x %}}{{% endif %}}{{% endfor %}}", STEPS),
        (f"{BIG}{MANY}{{% set y = x.count('ab') %}}{{% endfor %}}", STEPS),
        (f"{BIG}{{% set y %}}{MANY}{{{{ x }}}}{{% endfor %}}{{% endset %}}", f"{STEPS}|{TEXT}"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
            STEPS,
        ),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            TEXT,
        ),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            TEXT,
        ),
        (
            "{% set n = namespace(x=[]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
            "list grows",
        ),
        (
            "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "integer grows",
        ),
        ("{{ 'a' * 10**9 }}", TEXT),
        ("{{ [0] * 10**9 }}", TEXT),
        ("{{ 10 ** (10 ** 9) }}", "a power grows too large"),
        ("{{ '%999999999d' % 1 }}", "a format has a width"),
        ("{{ '%999999999d' | format(1) }}", "a format has a width"),
        ("{{ ('a' * 80000).replace('a', 'b' * 1000) }}", TEXT),
        ("{{ ('a' * 80000) | replace('', 'b' * 1000) }}", TEXT),
        ("{{ ('b' * 80000).join(['a'] * 1000) }}", TEXT),
        ("{{ (['a'] * 1000) | join('b' * 80000) }}", TEXT),
        ("{{ ('\n' * 80000) | indent(1000) }}", TEXT),
        ("{{ [1] | tojson(indent=10**9) }}", "an indent is over 8"),
        ("x" * 200_000, "has 200,000 characters; the most are 131,072"),
    ],
)
def test_a_template_that_does_too_much_is_ended(template, message):
    with pytest.raises(template_limits.TooMuch, match=message):
        rendered(template)


def test_what_looks_at_one_value_costs_one_step_however_long_the_conversation_is():
    text = "{% for m in messages %}{% set left = (messages | length - 1) - loop.index0 %}"
    text += "{% if m is mapping and m.content is string %}{{ left }} {% endif %}{% endfor %}"
    many = [{"role": "user", "content": "a" * 500}] * 1_000  # as Qwen3's template counts them
    assert template_limits.render(text, messages=many).split()[-2:] == ["1", "0"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a'.ljust(10**9) }}", "calls ljust of a str"),
        ("{{ '{:999999999}'.format(1) }}", "calls .*format"),
        ("{{ 'a' | center(10**9) }}", "No filter named 'center'"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable|may not"),
        ("{{ lipsum(n=10**6) }}", "'lipsum' is undefined"),
        ("{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}", "must not be recursive"),
        ("{% include 'a' %}", "loader"),
    ],
)
def test_what_cannot_be_bounded_is_no_part_of_the_language(template, message):
    with pytest.raises(chat_template.ERRORS, match=message):
        rendered(template)


def test_variables_that_hold_each_other_are_not_shown():
    text = "{% set a = namespace() %}{% set a.x = [a, a] %}{{ a.x }}{{ a }}"
    assert rendered(text) == "[<Namespace>, <Namespace>]<Namespace>"
    assert issubclass(jinja2.TemplateSyntaxError, chat_template.ERRORS)
