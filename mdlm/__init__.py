"""Masked diffusion language models in JAX: pretraining, perplexity, generation.

run = mdlm.load(mdlm.train("quickstart", "runs/quickstart"))
run.perplexity()
run.generate("The ", length=200)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mdlm.version import __version__ as __version__

if TYPE_CHECKING:
    from mdlm.run import Run as Run
    from mdlm.run import load as load
    from mdlm.train.from_python import train as train


def __getattr__(name: str):
    # `import mdlm` stays quick: what is heavy is imported when it is first used.
    if name in ("Run", "load"):
        from mdlm import run

        return getattr(run, name)
    if name == "train":
        return import_module("mdlm.train")  # a package that can be called
    raise AttributeError(f"module 'mdlm' has no attribute {name!r}")
