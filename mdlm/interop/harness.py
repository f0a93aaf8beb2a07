"""A run as a model of lm-eval, EleutherAI's harness (0.4.13): the class `mdlm` of its registry.

Log-likelihoods are those of `mdlm score`. The Monte Carlo error of each is kept beside it, so that
the error of a task can be told apart from it (`mdlm.interop.harness_tasks`). Answers are kept in a
file as they are made: a harness that was killed goes on where it was.

lm-eval has no entry points for models, so importing this file registers the class; `mdlm harness`
does that.
"""

import importlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdlm.data.pairs import Encoded, divided, rolled
from mdlm.data.tokens.conversations import check_words, checked, rendered
from mdlm.data.tokens.special_tokens import end_of
from mdlm.errors import InputError
from mdlm.evals.log_likelihood import Passes
from mdlm.evals.orders import Greedy
from mdlm.files import check_contained
from mdlm.generation.generator import Generator
from mdlm.generation.windows import Windows, window_of
from mdlm.interop.answers import Answer, Answers
from mdlm.processes.masked import Masked
from mdlm.run import Run, load

# lm-eval's own types are too narrow for its models, and it may not be installed.
LM: Any = importlib.import_module("lm_eval.api.model").LM
register_model: Any = importlib.import_module("lm_eval.api.registry").register_model

TOGETHER = 64
"""Pairs that are scored before their answers are kept."""
CANVAS = 32
"""Texts are generated in rows of a multiple of this length, so that few lengths are compiled."""
MOST_NEW = 256
"""Tokens that are generated where a task does not say how many."""
KEPT = "harness.jsonl"
"""The file of answers in a run folder."""


@register_model("mdlm")
class HarnessModel(LM):
    """A run for lm-eval: `--model mdlm --model_args run=RUN`.

    Args:
        run: a run folder, or an open run.
        passes, sure, by: as in `mdlm score`.
        greedy: whether to find out if greedy decoding writes a text, which costs a network call
            for each of its tokens; tasks that choose among answers do not use it.
        sampler: a sampler as text, such as "Parallel(rule=Share(steps=64))", in place of the run's.
        kept: the file that answers are kept in (default: harness.jsonl of the run; "": none).
        batch_size: rows evaluated, and texts generated, at a time.
    """

    def __init__(
        self,
        run: str | Run = "",
        passes: int | str = 32,
        sure: float | str | None = None,
        by: str | None = None,
        greedy: bool | str = True,
        sampler: str | None = None,
        seed: int | str = 0,
        step: int | str | None = None,
        kept: str | None = None,
        batch_size: int | str = 32,
        **others: Any,
    ):
        super().__init__()
        unknown = others.keys() - {"device", "max_batch_size", "trust_remote_code"}
        if unknown or not run:
            wrong = f"{min(unknown)}=...: unknown" if unknown else "run=...: missing"
            raise InputError(f"--model_args {wrong}; such as run=runs/llada,passes=128")
        self.run = (
            run if isinstance(run, Run) else load(run, step=None if step is None else int(step))
        )
        self.how = Passes(passes=int(passes), sure=None if sure is None else float(sure))
        self.seed, self.batch_size = int(seed), int(batch_size) if batch_size != "auto" else 32
        is_masked = isinstance(self.run.model.process, Masked)  # others do not reveal tokens
        self.greedy = is_masked and greedy not in (False, "False", "false", "0")
        self.likelihood = self.run.likelihood(by, seed=self.seed, batch_size=self.batch_size)  # pyright: ignore[reportArgumentType]
        self.sampler = _sampler(sampler, self.run)
        self.start = window_of(self.run.experiment.data.packing, self.run.model).frame[0]
        settings = {
            "step": self.run.step,
            "experiment": self.run.folder.config().get("fingerprint"),
            "protocol": self.likelihood.protocol,
            "passes": vars(self.how),
            "greedy": self.greedy,
            "sampler": repr(self.sampler),
            "seed": self.seed,
        }
        folder = Path(self.run.folder.path)
        if kept is None:
            check_contained(folder)
        path = folder / KEPT if kept is None else Path(kept) if kept else None
        self.answers = Answers(path, settings)
        self._greedy: Greedy | None = None
        self._generators: dict[tuple[Any, ...], Generator] = {}
        self._is_chat = False

    # Log-likelihoods

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Returns log p(continuation | context) in nats, and whether greedy decoding writes it."""

        def make(parts: Sequence[tuple[Any, ...]]) -> list[Answer]:
            pairs = [self._pair(*request) for request in parts]
            found = self.likelihood(pairs, self.how, numbers=[_number(pair) for pair in pairs])
            greedy = self._writes(pairs) if self.greedy else [False] * len(pairs)
            return [
                Answer(
                    key=self.answers.key("loglikelihood", request),
                    value=one.value,
                    stderr=one.stderr or 0.0,
                    is_greedy=bool(is_greedy),
                )
                for request, one, is_greedy in zip(parts, found, greedy, strict=True)
            ]

        answers = self._answered("loglikelihood", [request.args for request in requests], make)
        return [(answer.value, answer.is_greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Returns log p of whole texts in nats. Longer ones are scored in rows, each conditioned on
        the token before it, the last on a full row."""

        def make(parts: Sequence[tuple[Any, ...]]) -> list[Answer]:
            texts = [self.run.tokenizer.encode([text])[0].tolist() for (text,) in parts]
            rows = [list(rolled(text, self.start, self.likelihood.lengths[-1])) for text in texts]
            flat = [pair for own in rows for pair in own]
            found = iter(self.likelihood(flat, self.how, numbers=[_number(pair) for pair in flat]))
            answers = []
            for request, own in zip(parts, rows, strict=True):
                scored = [next(found) for _ in own]
                answers.append(
                    Answer(
                        key=self.answers.key("loglikelihood_rolling", request),
                        value=sum(one.value for one in scored),
                        stderr=math.sqrt(sum((one.stderr or 0.0) ** 2 for one in scored)),
                    )
                )
            return answers

        asked = [request.args for request in requests]
        return [answer.value for answer in self._answered("loglikelihood_rolling", asked, make)]

    def _pair(self, context: str, continuation: str) -> Encoded:
        """Returns the tokens of a request; of a context that is too long, the end is kept."""
        tokenizer, start = self.run.tokenizer, [] if self.start is None else [self.start]
        if self._is_chat:
            start, prompt = [], tokenizer.encode_marked([context])[0]
            response = tokenizer.encode_after(continuation).tolist()
        else:
            prompt, response = divided(tokenizer, context, continuation)
        where = f"the continuation {continuation!r:.60}"
        if not response:
            raise InputError(f"{where}: has no token")
        room = self.likelihood.lengths[-1] - len(start) - len(response)
        kept = prompt[max(0, len(prompt) - max(0, room)) :]
        return Encoded(prompt=(*start, *kept), response=tuple(response), where=where)

    def _writes(self, pairs: Sequence[Encoded]) -> Sequence[bool]:
        if self._greedy is None:
            network = self.run.experiment.network
            self._greedy = Greedy(
                self.run.model.diffusion,
                self.run.params,
                mesh=self.run.mesh,
                vocab=self.run.tokenizer.vocab,
                lengths=self.likelihood.lengths,
                batch_size=self.batch_size,
                block=getattr(network, "block_size", 0) or 0,
                causal=network.attends == "causal",
            )
        return self._greedy(pairs).tolist()

    # Texts

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Returns continuations of at most `max_gen_toks` tokens, up to the first of the texts
        `until`, which is left out, or to the end of the text."""

        def make(parts: Sequence[tuple[Any, ...]]) -> list[Answer]:
            texts = self._generated(parts)
            keys = [self.answers.key("generate_until", request) for request in parts]
            return [Answer(key=k, text=text) for k, text in zip(keys, texts, strict=True)]

        asked = [request.args for request in requests]
        return [answer.text for answer in self._answered("generate_until", asked, make)]

    def _generated(self, parts: Sequence[tuple[Any, ...]]) -> list[str]:
        """Returns the continuations of requests; those with canvases of one length go together."""
        out: list[str] = [""] * len(parts)
        groups: dict[Any, list[Any]] = {}
        for i, (context, settings) in enumerate(parts):
            most = int(settings.get("max_gen_toks") or MOST_NEW)
            prompt, total = self._canvas(context, most)
            wanted = settings.get("temperature"), settings.get("top_p"), settings.get("top_k")
            shaped = wanted if settings.get("do_sample") else (0.0, None, None)
            until = settings.get("until") or ()
            groups.setdefault((total, shaped), []).append((i, prompt, most, until))
        for (total, shaped), own in groups.items():
            for begin in range(0, len(own), self.batch_size):
                now = own[begin : begin + self.batch_size]
                filled = [*now, *now[-1:] * (self.batch_size - len(now))]
                made = self._generator(total, shaped).continue_tokens(
                    [prompt for _, prompt, *_ in filled], total, seed=self.seed
                )
                for (i, prompt, most, until), text in zip(now, made.texts, strict=False):
                    new = text.tokens[len(prompt) : len(prompt) + most]
                    out[i] = self._cut(new, until)
        return out

    def _canvas(self, context: str, most: int) -> tuple[list[int], int]:
        """Returns the tokens of a context, and the length of the text with `most` new ones, rounded
        up. Of a context that leaves no room for them, the end is kept."""
        if self._is_chat:
            prompt = self.run.tokenizer.encode_marked([context])[0]
        else:
            prompt = self.run.tokenizer.encode([context])[0].tolist()
        longest = self.run.experiment.data.packing.length - len(self._frame)
        if most < 1 or most > longest:
            raise InputError(f"max_gen_toks={most}: must be in 1..{longest}, a row of this run")
        prompt = prompt[max(0, len(prompt) - (longest - most)) :]
        multiple = math.lcm(CANVAS, getattr(self.run.experiment.network, "block_size", 0) or 1)
        row = math.ceil((len(self._frame) + len(prompt) + most) / multiple) * multiple
        return prompt, min(row - len(self._frame), longest)

    @property
    def _frame(self) -> list[int]:
        """The token that rows begin with, which templates of conversations write themselves."""
        return [] if self._is_chat or self.start is None else [self.start]

    def _generator(self, total: int, shaped: tuple[Any, ...]) -> Generator:
        key = total, shaped, self._is_chat
        if key not in self._generators:
            names = ("temperature", "top_p", "top_k")
            given = {n: v for n, v in zip(names, shaped, strict=True) if v is not None}
            generator = self.run.generator(replace(self.sampler, **given))
            start = self._frame[0] if self._frame else None
            generator.window = Windows(length=total + len(self._frame), frame=(start, None))
            self._generators[key] = generator
        return self._generators[key]

    def _cut(self, tokens: Sequence[int], until: str | Sequence[str]) -> str:
        ends = {*self.run.tokenizer.chat.ends, end_of(self.run.tokenizer.vocab)}
        n = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        text = self.run.tokenizer.decode(list(tokens[:n]))
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text

    # Conversations

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the text of a conversation, up to where the answer begins. An answer that is
        begun already, which `add_generation_prompt=False` says, follows it."""
        asked = chat_history if add_generation_prompt else chat_history[:-1]
        messages = checked(asked)
        check_words(messages, self.run.tokenizer)
        [text] = rendered([messages], self.run.tokenizer)
        self._is_chat = True
        return text if add_generation_prompt else text + chat_history[-1]["content"]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the run's template of conversations, which is the only one."""
        return self.run.tokenizer.chat.template or ""

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer and its template in the caches of lm-eval."""
        return self.run.tokenizer.fingerprint

    # Requests

    def _answered(
        self,
        kind: str,
        asked: Sequence[tuple[Any, ...]],
        make: Callable[[Sequence[tuple[Any, ...]]], list[Answer]],
    ) -> list[Answer]:
        """Returns the answers to requests; those that are not known are made and kept."""
        keys = [self.answers.key(kind, request) for request in asked]
        missing = {k: a for k, a in zip(keys, asked, strict=True) if k not in self.answers.known}
        rest = list(missing.values())
        for begin in range(0, len(rest), TOGETHER):
            self.answers.keep(make(rest[begin : begin + TOGETHER]))
        return [self.answers.known[key] for key in keys]

    def error_of(self, kind: str, request: tuple[Any, ...]) -> float:
        """Returns the Monte Carlo standard error of the answer to a request, in nats."""
        return self.answers.known[self.answers.key(kind, request)].stderr


def _number(pair: Encoded) -> int:
    """The number that the draws of a pair follow from: its text, so that they do not depend on what
    else is asked."""
    return zlib.crc32(repr((pair.prompt, pair.response)).encode())


def _sampler(text: str | None, run: Run) -> Any:
    from mdlm.config.component_text import from_text
    from mdlm.samplers import Sampler

    return from_text(text, Sampler, "sampler") if text else run.experiment.sampler
