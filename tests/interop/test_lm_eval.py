"""lm-eval with runs whose answers are known: the network ignores its input and gives each byte a
fixed probability, so every likelihood is known. Texts of one byte, repeated, have no noise."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from made_run import made

pytest.importorskip("lm_eval", reason="needs the extra `harness`")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from mdlm.data import Bytes, NoText, TextData, Wrap  # noqa: E402
from mdlm.data.pairs import rolled  # noqa: E402
from mdlm.data.tokens.chat import Chat  # noqa: E402
from mdlm.errors import InputError  # noqa: E402
from mdlm.evals.likelihood import Likelihood  # noqa: E402
from mdlm.interop.answers import Answer, Answers  # noqa: E402
from mdlm.interop.harness import HarnessModel  # noqa: E402
from mdlm.interop.harness_tasks import evaluate  # noqa: E402
from mdlm.samplers import Parallel, Share  # noqa: E402

# lm-eval and what it needs warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
ORDER = "yes no"
"""Bytes in falling order of their probability, and before all others."""


def experiment(folder, length=64):
    data = TextData(
        source=NoText(), tokenizer=Bytes(), packing=Wrap(length=length, row_specials=False)
    )
    sampler = Parallel(rule=Share(steps=8))
    return tiny.experiment(folder, data=data, sampler=sampler)


def unigram(params, letters=ORDER):
    """Parameters with which all positions have the same logits: the bias of the head alone."""
    tokens = Bytes().build([]).encode([letters])[0]
    params = jax.tree.map(jnp.zeros_like, params)
    bias = np.zeros(params["network"]["head"]["bias"].shape, np.float32)
    bias[tokens[::-1]] = 3 + np.arange(len(tokens))
    params["network"]["head"]["bias"] = jnp.asarray(bias)
    return params


def log_p(text):
    """The log-probability of a text under `unigram`, in float64."""
    logits = np.zeros(Bytes().build([]).vocab.size)
    tokens = Bytes().build([]).encode([ORDER])[0]
    logits[tokens[::-1]] = 3 + np.arange(len(tokens))
    mask = Bytes().build([]).vocab.mask_id
    total = np.log(np.exp(np.delete(logits, mask)).sum())
    return sum(logits[i] - total for i in Bytes().build([]).encode([text])[0])


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    return made(folder / "run", experiment(folder), unigram)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    return made(folder / "run", experiment(folder))


def model(run, **settings):
    return HarnessModel(run, **{"passes": 4, "kept": "", "batch_size": 16, **settings})


def asked(kind, *requests):
    return [Instance(request_type=kind, doc={}, arguments=r, idx=0) for r in requests]


MULTIPLE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yy", "nn", "xxxxx"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: byte_perplexity}}
"""
GENERATE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["no"], max_gen_toks: 6}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def task(folder, name, template, rows):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(template.format(name=name, data=data), encoding="utf-8")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = ["why?", "a longer question, is it?", "?", "and now "]
    ask = lambda answers: [
        {"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    task(folder, "always", MULTIPLE, ask(["yy"] * 4))
    task(folder, "half", MULTIPLE, ask(["yy", "xxxxx", "yy", "nn"]))
    task(folder, "alike", ROLLING, [{"text": "the same text"}] * 3)
    task(folder, "written", GENERATE, ask(["yyyyyy"] * 4))
    return str(folder)


def test_tasks_with_known_scores(known, tasks):
    assert log_p("yy") > log_p("nn") > log_p("xxxxx")
    names = ["always", "half", "written"]
    found = evaluate(model(known), names, tasks)["results"]
    assert found["always"]["acc,none"] == 1.0
    assert found["half"]["acc,none"] == 0.5
    assert found["half"]["acc_stderr,none"] == pytest.approx(math.sqrt(0.25 / 3))
    assert found["half"]["acc_noise_stderr,none"] == 0
    # The sampler takes the likeliest byte everywhere.
    assert found["written"]["exact_match,none"] == 1.0


def test_the_noise_is_in_the_error_of_a_task(noisy, tasks):
    """Documents that are alike have the same noise: the spread between them does not show it."""
    scorer = model(noisy)
    found = evaluate(scorer, ["alike"], tasks)["results"]["alike"]
    [(value, error)] = [(a.value, a.stderr) for a in scorer.answers.known.values()]
    n = len("the same text")
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(-value / n))
    noise = found["byte_perplexity_noise_stderr,none"]
    assert found["byte_perplexity_stderr,none"] == noise
    # The three are one request, so their mean has the whole noise of it.
    assert noise == pytest.approx(math.exp(-value / n) * error / n, rel=0.2) and error > 0


def test_log_likelihoods(known):
    scorer = model(known, passes=32)
    requests = [("why? ", "yes"), ("", "no"), ("x" * 100, "y"), ("a", "yyy"), ("a", "yyn")]
    found = scorer.loglikelihood(asked("loglikelihood", *requests))
    for request, (value, is_greedy) in zip(requests, found, strict=True):
        text, error = request[1], scorer.error_of("loglikelihood", request)
        assert value == pytest.approx(log_p(text), abs=5 * error + 1e-4)
        assert (error < 1e-5) == (len(set(text)) == 1)
        assert is_greedy == (set(text) == {"y"})
    with pytest.raises(InputError, match="has no token"):
        scorer.loglikelihood(asked("loglikelihood", ("a", "")))
    with pytest.raises(InputError, match="the continuation 'xx.*a row of this run 64"):
        scorer.loglikelihood(asked("loglikelihood", ("a", "x" * 65)))


def test_the_name_of_the_model(known):
    """As `lm_eval --model mdlm --model_args ...` makes it, once the file was imported."""
    text = f"run={known.folder.path},passes=6,greedy=False,kept=,seed=3"
    made = get_model("mdlm").create_from_arg_string(text, {"batch_size": "8", "device": None})
    assert isinstance(made, HarnessModel) and made.answers.path is None
    assert (made.how.passes, made.greedy, made.batch_size, made.seed) == (6, False, 8, 3)


def test_answers_do_not_depend_on_what_else_is_asked(noisy):
    requests = [("one ", "two"), ("a longer beginning, ", "and its end"), ("", "x")]
    together = model(noisy).loglikelihood(asked("loglikelihood", *requests))
    alone = [model(noisy).loglikelihood(asked("loglikelihood", r))[0] for r in requests[::-1]]
    for (a, _), (b, _) in zip(together, alone[::-1], strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_whole_texts(known):
    """Each token once, also of texts that are longer than a row."""
    texts, scorer = ["yyyy", "n" * 150, "no yes " * 20, ""], model(known)
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    for text, value in zip(texts, scorer.loglikelihood_rolling(requests), strict=True):
        error = scorer.error_of("loglikelihood_rolling", (text,))
        assert value == pytest.approx(log_p(text), rel=1e-5, abs=5 * error)
    for start in (None, 7):
        for n in (0, 1, 9, 10, 11, 28, 40):
            rows = list(rolled(list(range(100, 100 + n)), start, 10))
            assert [t for row in rows for t in row.response] == list(range(100, 100 + n))
            assert all(len(row) <= 10 and row.response for row in rows)
            for row in rows[1:]:
                assert row.prompt[-1] == row.response[0] - 1
            if n > 10:
                assert len(rows[-1]) == 10


def test_texts_end_where_they_are_told_to(known, noisy):
    """Greedy decoding writes y everywhere; prompts of different lengths go together."""
    settings = {"until": [], "max_gen_toks": 5}
    requests = [("a", settings), ("a longer one", settings), ("b", {**settings, "until": "yyy"})]
    writer = model(known)
    assert writer.generate_until(asked("generate_until", *requests)) == ["yyyyy", "yyyyy", ""]
    long = ("a" * 200, {"until": ["\\n"], "max_gen_toks": 9})
    assert writer.generate_until(asked("generate_until", long)) == ["y" * 9]
    with pytest.raises(InputError, match="max_gen_toks=65: must be in 1..64"):
        writer.generate_until(asked("generate_until", ("a", {"max_gen_toks": 65})))
    # What is written in full, cut at any of the texts.
    whole = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}
    [text] = model(noisy).generate_until(asked("generate_until", ("x", whole)))
    stop = text[len(text) // 2]
    [cut] = model(noisy).generate_until(asked("generate_until", ("x", {**whole, "until": [stop]})))
    assert cut == text[: text.index(stop)] and len(cut) < len(text)


def test_answers_survive_a_kill(noisy, tmp_path, monkeypatch):
    kept = str(tmp_path / "answers.jsonl")
    requests = [(f"prompt {i}", "answer") for i in range(6)]
    monkeypatch.setattr("mdlm.interop.harness.TOGETHER", 2)

    calls = []

    def killed(self, *arguments, **settings):
        """Raises at the third call."""
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, *arguments, **settings)

    def counted(self, pairs, *arguments, **settings):
        seen.extend(pairs)
        return score(self, pairs, *arguments, **settings)

    score, seen = Likelihood.__call__, []
    monkeypatch.setattr(Likelihood, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        model(noisy, kept=kept, greedy=False).loglikelihood(asked("loglikelihood", *requests))
    with open(kept, "a", encoding="utf-8") as file:
        file.write('{"key": "ab')  # half a line, as a full disk or a kill leaves it
    monkeypatch.setattr(Likelihood, "__call__", counted)
    found = model(noisy, kept=kept, greedy=False).loglikelihood(asked("loglikelihood", *requests))
    assert len(seen) == 2
    again = model(noisy, kept=kept, greedy=False).loglikelihood(asked("loglikelihood", *requests))
    assert again == found and len(seen) == 2
    whole = model(noisy, greedy=False).loglikelihood(asked("loglikelihood", *requests))
    assert [a for a, _ in found] == pytest.approx([a for a, _ in whole], abs=1e-4)
    # Other passes are other answers.
    other = model(noisy, kept=kept, greedy=False, passes=6)
    assert other.loglikelihood(asked("loglikelihood", requests[0])) != found[:1]


def test_the_file_of_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    a, b = Answer(key="a", value=-1.5, stderr=0.25, is_greedy=True), Answer(key="b", text="ü\n")
    Answers(path, {}).keep([a, b])
    path.write_bytes(path.read_bytes() + b'{"key": "c", "val\n[]\n')
    assert Answers(path, {}).known == {"a": a, "b": b}
    assert Answers(path, {}).key("x", ("a",)) != Answers(path, {"step": 1}).key("x", ("a",))


def test_conversations(noisy):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    noisy.tokenizer.chat = Chat(template=template)
    try:
        scorer = model(noisy)
        history = [{"role": "user", "content": "why"}]
        assert scorer.apply_chat_template(history) == "user: why\\nassistant: "
        begun = [*history, {"role": "assistant", "content": "well"}]
        text = scorer.apply_chat_template(begun, add_generation_prompt=False)
        assert text == "user: why\\nassistant: well"
        assert scorer.chat_template() == template
        [(value, _)] = scorer.loglikelihood(asked("loglikelihood", (text, " so")))
        plain = model(noisy).loglikelihood(asked("loglikelihood", (text, " so")))
        assert value == pytest.approx(plain[0][0], abs=1e-4)
    finally:
        noisy.tokenizer.chat = Chat()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": ""}, "run=...: missing; such as run=runs/llada"),
        ({"pases": 3}, "pases=...: unknown"),
        ({"passes": "3"}, "passes=3: must be even"),
    ],
)
def test_bad_arguments(noisy, settings, message):
    with pytest.raises(InputError, match=message):
        model(**{"run": noisy, **settings})


def test_tasks_that_are_none(noisy, tasks):
    with pytest.raises(InputError, match="--tasks alway: no such task.*did you mean always"):
        evaluate(model(noisy), ["alway"], tasks)
    with pytest.raises(InputError, match="--include-path none: no such folder"):
        evaluate(model(noisy), ["always"], "none")
