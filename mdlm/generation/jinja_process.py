"""Renders a chat template in a process of its own. Run as a script, by `mdlm.generation.chat`.

A template comes with a checkpoint, so it is not trusted: Jinja's sandbox keeps it from Python's
objects, and the limits of this process end one that takes too long or too much memory.
"""

import json
import resource
import sys
from datetime import datetime

SECONDS, BYTES = 10, 2**30


def render(template: str, values: dict) -> str:
    """Returns the text of a conversation. Raises Jinja's errors."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    dump = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.filters["tojson"] = dump
    now = lambda form: datetime.now().strftime(form)
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    return environment.from_string(template).render(**values)


def main() -> int:
    asked = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        answer = {"text": render(asked["template"], asked["values"])}
    except Exception as error:  # Jinja's, the template's own, or one of memory
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(json.dumps(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
