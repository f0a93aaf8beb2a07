"""Answers to the requests of a harness, kept in a file as they are made."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlm.files import append
from mdlm.foreign.typed_json import decoded


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A log-likelihood in nats with its standard error (0: exact) and whether greedy decoding
    writes the text; or a text that was generated."""

    key: str
    value: float = 0.0
    stderr: float = 0.0
    is_greedy: bool = False
    text: str = ""


class Answers:
    """Answers by request, in memory and in a file of JSON lines, None for memory alone.

    `how` is all that answers depend on besides the request, such as the checkpoint and the number
    of passes: answers to the same request made otherwise are not returned.
    """

    def __init__(self, path: Path | None, how: dict[str, Any]):
        self.path, self.how = path, json.dumps(how, sort_keys=True)
        self.known: dict[str, Answer] = {}
        self._is_cut = False
        if path is not None and path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            self._is_cut = bool(content) and not content.endswith("\n")
            for line in content.splitlines():
                with contextlib.suppress(ValueError):  # the last line of a killed process
                    answer = decoded(line, Answer)
                    self.known[answer.key] = answer

    def key(self, kind: str, request: tuple[Any, ...]) -> str:
        """Returns the key of a request of a kind, such as "loglikelihood"."""
        asked = json.dumps([kind, list(request), self.how], sort_keys=True, default=str)
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()

    def keep(self, answers: list[Answer]) -> None:
        """Keeps answers. Raises OSError, which names the file, if it cannot be written to."""
        self.known |= {answer.key: answer for answer in answers}
        if self.path is not None:
            lines = "".join(json.dumps(vars(answer)) + "\n" for answer in answers)
            append(self.path, ("\n" * self._is_cut + lines).encode())
            self._is_cut = False
