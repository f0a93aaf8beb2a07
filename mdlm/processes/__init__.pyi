from .base import Process as Process
from .hybrid import Hybrid as Hybrid
from .hybrid import HybridSchedule as HybridSchedule
from .hybrid import LogSNRHybrid as LogSNRHybrid
from .interpolating import Interpolating as Interpolating
from .masked import Masked as Masked
from .uniform import Uniform as Uniform
