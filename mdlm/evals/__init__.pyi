from .blanks import Blanks as Blanks
from .generated.judge import judged as judged
from .generated.measures import measures as measures
from .nll import Metric as Metric
from .nll import table as table
