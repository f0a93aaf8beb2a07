from .nll import Metric as Metric
from .nll import table as table
