from .base import Parameterization as Parameterization
from .mean import Mean as Mean
from .score import Score as Score
from .subs import Subs as Subs
