"""Templates that would read files, leave the sandbox, loop for hours or make gigabytes: refused within their budget."""

from __future__ import annotations

import asyncio
import itertools

import jinja2
import pytest

from dedicate_runtime.api.chat_template import ChatTemplate, load_chat_template
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.schemas import Message
from dedicate_runtime.errors import ExitCode, StartError

HI = [Message(role="user", content="Hi")]


class Clock:
    """A millisecond passes with each look at it."""

    def __init__(self):
        self._ticks = itertools.count()

    def __call__(self):
        return next(self._ticks) / 1000


def render(source, *, messages=HI, extra=None, **limits):
    limits = {"timeout_s": 5.0, "clock": Clock(), "max_characters": 10**6, **limits}
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, **limits).render(messages, extra=extra)


def refusal(source, **options):
    with pytest.raises(ApiError) as caught:
        render(source, **options)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    return caught.value.message


def looping(body, times=99):
    """A template that works on one text again and again."""
    return "{% set n = namespace(s='a') %}{% for i in range(" + str(times) + ") %}" + body + "{% endfor %}"


LOOPS = {
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "without output": "{% for a in range(99999) %}{% set x = a %}{% endfor %}",
    "with continue": "{% for a in range(99999) %}{% continue %}{% endfor %}",
    "recursive": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 30 }}{% endfor %}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(30) }}",
    "caller": "{% macro m() %}{% for i in range(999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}{% call m() %}{% endcall %}{% endcall %}",
    "block": "{% block b %}{% for a in range(99999) %}{% endfor %}{% endblock %}",
    "scoped block": (
        "{% for i in [1] %}{% block b scoped %}{% for a in range(99999) %}{% endfor %}{% endblock %}{% endfor %}"
    ),
    "map": "{{ range(99999) | map('abs') | list | length }}",
    "sum": "{{ range(99999) | sum }}",
    "filtered": "{% for a in range(99999) if a | abs < 0 %}{% endfor %}",
}


@pytest.mark.parametrize("source", LOOPS.values(), ids=LOOPS)
def test_template_that_takes_too_long_is_refused(source):
    assert "it takes more than 5 s" in refusal(source)


GROWTHS = {
    "doubling by +": looping("{% set n.s = n.s + n.s %}"),
    "doubling by ~": looping("{% set n.s = n.s ~ n.s %}"),
    "doubling by a block": looping("{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}"),
    "doubling a list": looping("{% set n.s = [n.s] + [n.s] if i == 0 else n.s + n.s %}"),
    "doubling by format": looping("{% set n.s = '%s%s' % (n.s, n.s) %}"),
    "doubling by str.format": looping("{% set n.s = '{0}{0}'.format(n.s) %}"),
    "doubling by join": looping("{% set n.s = [n.s, n.s] | join %}"),
    "doubling by str.join": looping("{% set n.s = ''.join([n.s, n.s]) %}"),
    "doubling by replace": looping("{% set n.s = n.s.replace('a', 'aa') %}"),
    "keeping slices": looping("{% set n.s = [('a' * 9999)[1:]] + ([] if i == 0 else n.s) %}", 999),
    "times": "{{ 'a' * 10**9 }}",
    "times, turned": "{{ 10**9 * 'a' }}",
    "list times": "{{ ([0] * 10**9) | length }}",
    "tuple times": "{{ ((0,) * 10**9) | length }}",
    "separator": "{{ ('a' * 999).join(range(99999) | map('string')) | length }}",
    "separator of the filter": "{{ range(99999) | join('a' * 999) | length }}",
    "many references": "{{ ''.join(['a' * 9999] * 9999) }}",
    "many percents": "{{ ('%s' * 9999) % (('a' * 9999,) * 9999) }}",
    "many fields": "{{ ('{0}' * 9999).format('a' * 9999) }}",
    "format_map": "{{ ('{a}' * 9999).format_map({'a': 'a' * 9999}) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "rjust": "{{ 'a'.rjust(10**9, 'x') }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "bytes": "{{ 'a'.encode().center(10**9) | length }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "translate": "{{ ('a' * 9999).translate({97: 'b' * 9999}) }}",
    "replace": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "replace of nothing": "{{ ('a' * 9999).replace('', 'b' * 9999) }}",
    "safe": "{{ ('a' | safe).center(10**9) }}",
    "split": "{{ ('a,' * 99999).split(',') | length }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "center filter by name": "{{ 'a' | center(width=10**9) }}",
    "indent filter": "{{ ('a\n' * 9999) | indent(9999) }}",
    "replace filter": "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}",
    "batch filter": "{{ [1] | batch(10**9, 0) | list | length }}",
    "slice filter": "{{ [1] | slice(10**9) | list | length }}",
    "slow filters": "{{ ('a ' * 99999) | wordwrap }}",
    "mapped filter": "{{ ['a'] | map('center', 10**9) | list | length }}",
    "filter block": "{% filter center(10**9) %}a{% endfilter %}",
    "sum of lists": "{{ ([[0] * 999] * 999) | sum(start=[]) | length }}",
    "constants": "{% for i in range(9999) %}" + "x" * 999 + "{% endfor %}",
    "output": "{% for i in range(9999) %}{{ messages[0].content * 999 }}{% endfor %}",
}


@pytest.mark.parametrize("source", GROWTHS.values(), ids=GROWTHS)
def test_template_that_makes_too_much_is_refused(source):
    assert "it makes more than 1000000 characters" in refusal(source, timeout_s=1e9)


WIDTHS = {
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format with a nested width": "{{ '{:{}}'.format(1, 10**9) }}",
    "format_map with a nested width": "{{ '{a:{w}}'.format_map({'a': 1, 'w': 10**9}) }}",
    "indent": "{{ 'a' | indent(10**9) }}",
    "indent by text": "{{ 'a' | indent('a' * 99999) }}",
    "tojson": "{{ messages | tojson(indent=10**9) }}",
    "round": "{{ 1.5 | round(10**9) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of powers": "{{ (10 ** 999) ** 999 }}",
    "squares": "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
}


@pytest.mark.parametrize("source", WIDTHS.values(), ids=WIDTHS)
def test_widths_and_numbers_are_bounded(source):
    message = refusal(source)
    assert "wider" in message or "indents" in message or "bits" in message


ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ '' | attr('__class__') | attr('__mro__') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a filter": "{{ range.__init__.__globals__ }}",
    "code": "{{ raise_exception.__code__.co_consts }}",
    "template": "{{ self._TemplateReference__context.environment }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner().__class__ .__init__.__globals__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "mapped attribute": "{{ [''] | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "generator frame": "{{ (messages | map('length')).gi_frame.f_globals }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "loop": "{% for a in [1] %}{{ loop._iterable.__class__.__mro__ }}{% endfor %}",
    "namespace": "{{ namespace().__class__.__mro__ }}",
    "budget": "{{ context.budget }}",
    "the list": "{{ messages.append(1) }}",
    "the turn": "{{ messages[0].update(role='system') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "from import": "{% from '/etc/passwd' import x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "open": "{{ open('/etc/passwd').read() }}",
    "builtins": "{{ __builtins__ }}{{ __import__('os') }}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_nothing_leads_out_of_the_sandbox(source):
    """What cannot be reached is refused; an unknown name is nothing at all."""
    try:
        text = render(source)
    except ApiError as refused:
        text = refused.message
    assert not any(sign in text for sign in ("root:", "uid=", "<class", "<module", "Budget", "dedicate_runtime"))


def test_budget_is_each_renderings_own():
    template = ChatTemplate(
        "{% for i in range(40) %}{{ 'a' * 1000 }}{% endfor %}", {}, max_characters=10**5, clock=lambda: 0.0
    )
    assert [len(template.render(HI)) for _ in range(5)] == [40_000] * 5


def test_both_attempts_share_one_budget():
    """A conversation that is merged after the template has refused it gets no second deadline."""
    looks = []

    def clock():
        looks.append(None)
        return len(looks) / 1000

    source = (
        "{% for i in range(3000) %}{% endfor %}{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}"
    )
    assert "it takes more than 5 s" in refusal(source, messages=HI * 2, clock=clock)
    assert len(looks) < 5100


@pytest.mark.parametrize(
    "name",
    [
        "messages",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "raise_exception",
        "strftime_now",
        "range",
        "namespace",
    ],
)
def test_clients_set_no_variable_of_ours(name):
    with pytest.raises(ApiError) as caught:
        render("{{ bos_token }}", extra={name: "x"})
    assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")
    assert name in caught.value.message


def test_clients_set_variables_of_the_template():
    assert render("{{ enable_thinking }}", extra={"enable_thinking": False}) == "False"


async def test_endpoint_answers_and_goes_on(make_api, model_folder):
    """More renderings at once than there are threads: each is refused, and the threads are free again."""
    template = "{% if messages[0].content == 'slow' %}{{ 'a' * 10**12 }}{% endif %}{{ messages[0].content }}"
    (model_folder / "chat_template.jinja").write_text(template)
    api = make_api()
    answers = await asyncio.gather(*(api.chat("slow") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {400}
    assert answers[0].json()["error"]["param"] == "messages"
    assert (await api.chat("quick")).status_code == 200


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "input_image"])
async def test_nothing_is_fetched_for_a_part(api, kind):
    """Parts that carry an address are refused before anything looks at it."""
    for address in ("http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "data:text/plain,x"):
        part = {"type": kind, kind: {"url": address}}
        response = await api.chat([{"type": "text", "text": "What is this?"}, part])
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages[0].content"


@pytest.mark.parametrize(
    "source",
    ["{{", "{% for %}", "{{ x | no_such_filter }}", "{% for a in b %}" * 30 + "{% endfor %}" * 30, "{{ " + "(" * 5000],
    ids=["expression", "statement", "filter", "nested too deep for Python", "nested too deep for Jinja"],
)
def test_template_that_cannot_be_compiled_ends_the_start(source, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(StartError) as caught:
        load_chat_template(tmp_path, {})
    assert caught.value.exit_code is ExitCode.MODEL_CORRUPT


def test_constants_are_not_computed_while_compiling():
    """They would be without any budget."""
    for expression in ("'a' * 10**12", "'a' | center(10**12)", "10 ** (10 ** 10)", "[0] | batch(10**12, 1) | list"):
        ChatTemplate("{% if false %}{{ " + expression + " }}{% endif %}", {})


def test_jinja_itself_is_what_refuses_names():
    """So that the list above is of this sandbox, not of names that do not exist."""
    assert jinja2.Environment(autoescape=True).from_string(ESCAPES["class"]).render() != ""
