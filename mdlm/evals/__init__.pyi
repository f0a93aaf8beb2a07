from .nll import Metric as Metric
