"""Names that modules had before version 0.2, for the experiment files that run folders keep.

A run folder holds a copy of the experiment file, with the imports of its time. While such a copy is
executed, the old names refer to the modules that hold their contents now.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OLD_NAMES = {
    "mdlm.change_of_variables": "mdlm.schedules.change_of_variables",
    "mdlm.md4_schedules": "mdlm.schedules.md4",
    "mdlm.per_token_schedules": "mdlm.schedules.per_token",
    "mdlm.mesh": "mdlm.parallel.mesh",
    "mdlm.data.cleaning": "mdlm.data.text.cleaning",
    "mdlm.data.fasta": "mdlm.data.text.fasta",
    "mdlm.data.hugging_face": "mdlm.data.text.hugging_face",
    "mdlm.data.text8": "mdlm.data.text.text8",
    "mdlm.samplers.guidance": "mdlm.samplers.logits.guidance",
    "mdlm.samplers.selection": "mdlm.samplers.unmasking_rules",
    "mdlm.samplers.shaping": "mdlm.samplers.logits.shaping",
}
MOVED = {"mdlm.evals.nll": {"Perplexity": "mdlm.experiment.evaluation"}}
"""Names that moved out of a module that still exists."""


class _Old(MetaPathFinder, Loader):
    """Finds the module of the new name under its old name; both are the same object."""

    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname in OLD_NAMES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(OLD_NAMES[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def old_names() -> Iterator[None]:
    """Context in which modules are also found under their old names."""
    finder = _Old()
    sys.meta_path.append(finder)
    lent = []
    for name, moved in MOVED.items():
        module = importlib.import_module(name)
        for one, home in moved.items():
            if not hasattr(module, one):
                setattr(module, one, getattr(importlib.import_module(home), one))
                lent.append((module, one))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in OLD_NAMES:
            sys.modules.pop(name, None)
        for module, one in lent:
            delattr(module, one)
