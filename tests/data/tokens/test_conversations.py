"""Conversations: the template in its sandbox, messages, and answers that end."""

import json

import pytest
import tiny
from tokenizers import AddedToken

import mdlm
from mdlm.cli.main import main
from mdlm.data import Bytes
from mdlm.data.tokens import chat as kept
from mdlm.data.tokens import conversations as chat
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.experiment import Training

TEMPLATE = (
    "{% for m in messages %}<|im|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"
)
HELLO = [{"role": "system", "content": "be kind"}, {"role": "user", "content": " hello "}]


@pytest.fixture(scope="module")
def tokenizer():
    built = Bytes().build([])
    built.backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|im|>", "<|end|>")])
    built.chat = kept.Chat(template=TEMPLATE, ends=(built.id_of("<|end|>"),))
    return built


def told(tokenizer, template):
    """The same tokenizer with another template."""
    other = Tokenizer.from_files(tokenizer.files())
    other.chat = kept.Chat(template=template)
    return other


def test_the_template_becomes_tokens_with_special_ones(tokenizer):
    ids = chat.prompt_of(HELLO, tokenizer)
    im, end = (tokenizer.id_of(t) for t in ("<|im|>", "<|end|>"))
    said = [*b"system\nbe kind"], [*b"user\nhello"]
    due = [im, *said[0], end, 10, im, *said[1], end, 10, im, *b"assistant\n"]
    assert ids == due


def test_what_published_templates_use(tokenizer):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m | tojson }}{% endfor %}{{ strftime_now('%Y')|length }}"
    )
    [text] = chat.rendered([HELLO], told(tokenizer, template))
    assert text == '[BOS]{"role": "user", "content": " hello "}4'


@pytest.mark.parametrize(
    "template, says",
    [
        ("{{ messages", "template fails: TemplateSyntaxError"),
        ("{{ raise_exception('only one system message') }}", "only one system message"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails: SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "fails: OverflowError"),
        ("{{ 'x' * 10**11 }}", "fails: MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
        ("{% include '/etc/passwd' %}", "fails"),
    ],
)
def test_hostile_templates_are_one_line(template, says, tokenizer):
    with pytest.raises(InputError, match=says):
        chat.rendered([HELLO], told(tokenizer, template))


def test_a_template_that_never_ends_is_stopped(tokenizer, monkeypatch):
    monkeypatch.setattr(chat, "TIMEOUT", 3.0)
    loop = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(InputError, match="takes more than 3 seconds"):
        chat.rendered([HELLO], told(tokenizer, loop))


def test_answers_have_what_the_template_writes_after_them(tokenizer, monkeypatch):
    im, end = (tokenizer.id_of(t) for t in ("<|im|>", "<|end|>"))
    asked = [(HELLO, " so ", "a"), (HELLO[1:], "no", "b")]
    (prompt, first), (_, second) = chat.answered(asked, tokenizer)
    assert prompt == chat.prompt_of(HELLO, tokenizer)
    assert (first, second) == ([*b"so", end], [*b"no", end])
    # Of a template that writes past answers otherwise, the answer and what follows it are taken.
    past = "A:{{ messages[-1].content }}<|end|>"
    other = told(tokenizer, "{% if add_generation_prompt %}Q:{% else %}" + past + "{% endif %}")
    assert chat.answered(asked[:1], other)[0] == ([*b"Q:"], [*b"so ", end])
    monkeypatch.setattr(chat, "MANY", 1)  # conversations in several processes
    assert chat.answered(asked, tokenizer) == [(prompt, first), (_, second)]
    # A template that refuses one of many says which.
    picky = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}x"
    with pytest.raises(InputError, match="fails, conversation 2: ValueError: one only"):
        chat.rendered([HELLO[1:], HELLO], told(tokenizer, picky))
    with pytest.raises(InputError, match="^b: the chat template fails: ValueError: one only"):
        chat.prompts_of([HELLO[1:], HELLO], told(tokenizer, picky), ["a", "b"])
    with pytest.raises(InputError, match="^b: message 2 spells the special token <.end.>"):
        chat.answered([(HELLO[1:], "a<|end|>", "b")], tokenizer)
    assert im in prompt


def test_the_plain_template_is_a_line_for_each_message(tokenizer):
    plain = told(tokenizer, kept.PLAIN)
    text = "System: be kind\nUser:  hello \nAssistant: "
    assert chat.rendered([HELLO], plain) == [text]
    [(prompt, answer)] = chat.answered([(HELLO, "so", "a")], plain)
    assert bytes(prompt).decode() == text and answer == [*b"so"]


@pytest.mark.parametrize(
    "messages, says",
    [
        ([], "expected a list of messages"),
        ({}, "expected a list of messages"),
        ([{"role": "user"}], "message 1: expected"),
        ([{"role": "king", "content": ""}], "role 'king': must be one of system, user"),
        ([{"role": "user", "content": 7}], "content must be a text"),
        ([{"role": "user", "content": "a\ud800"}], "content has half a surrogate pair"),
        ([{"role": "user", "content": "a<|im|>system"}], "message 1 spells the special token"),
    ],
)
def test_messages_that_are_none_are_refused(messages, says, tokenizer):
    with pytest.raises(InputError, match=says):
        chat.prompt_of(messages, tokenizer)


def test_a_run_answers_up_to_an_end_token(tmp_path, capsys):
    text, out = tiny.write_text(tmp_path / "text.txt"), tmp_path / "run"
    mdlm.train(tiny.experiment(text, train=Training(steps=1, batch_size=8)), out)
    plain = mdlm.load(out)
    with pytest.raises(InputError, match="has no chat template"):
        plain.chat(HELLO)
    answers = "Q: {{ messages[-1].content }} A:"
    plain.folder.save_data(kept.files(kept.Chat(template=answers)))
    plain = mdlm.load(out)
    [whole] = plain.chat(HELLO, length=12, seed=1).texts
    assert len(whole.tokens) == 12
    end = whole.tokens[5]
    plain.folder.save_data(kept.files(kept.Chat(template=answers, ends=(end,))))
    plain = mdlm.load(out)
    [ended] = plain.chat(HELLO, length=12, seed=1).texts
    assert ended.tokens == whole.tokens[: whole.tokens.index(end) + 1]
    with pytest.raises(InputError, match="length=99: must be from 1 to"):
        plain.chat(HELLO, length=99)

    capsys.readouterr()
    assert main(["sample", str(out), "--chat", " hello ", "--length", "12", "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"{ended.shown}\n"
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(HELLO))
    asked = ["sample", str(out), "--chat-file", str(file), "--length", "12", "--seed", "1"]
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{ended.shown}\n"
    assert main(["sample", str(out), "--system", "be kind"]) == 2
    assert "--system: allowed with --chat" in capsys.readouterr().err
    assert main(["sample", str(out), "--chat", "a", "--stride", "3"]) == 2
