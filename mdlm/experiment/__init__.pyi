from .evaluation import Perplexity as Perplexity
from .experiment import Experiment as Experiment
from .experiment import Training as Training
from .loading import load_file as load_file
from .model import Model as Model
from .stages import Stage as Stage
