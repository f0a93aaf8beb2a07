"""Renders a chat template in a process of its own. Run as a script, by `conversations.rendered`.

A template comes with a checkpoint, so it is not trusted: Jinja's sandbox keeps it from Python's
objects, and the limits of this process end one that takes too long or too much memory.
"""

import json
import resource
import sys
from datetime import datetime

SECONDS, BYTES = 10, 2**30


def compiled(template: str):
    """Returns a template that can be rendered. Raises Jinja's errors."""
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
    return environment.from_string(template)


def main() -> int:
    asked = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    texts: list[str] = []
    answer: dict = {"texts": texts}
    try:
        template = compiled(asked["template"])
        for messages in asked["conversations"]:
            texts.append(template.render(messages=messages, **asked["values"]))
        said = json.dumps(answer)
    except Exception as error:  # Jinja's, the template's own, or one of memory
        said = json.dumps({"written": len(texts), "error": f"{type(error).__name__}: {error}"})
    sys.stdout.buffer.write(said.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
