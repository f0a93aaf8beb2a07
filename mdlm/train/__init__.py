"""Training. The package can be called: `mdlm.train(experiment, out)` is `from_python.train`."""

import sys
from types import ModuleType


class _Callable(ModuleType):
    def __call__(self, *arguments, **named):
        from mdlm.train.from_python import train

        return train(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
