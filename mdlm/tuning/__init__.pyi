from .base import Tuning as Tuning
from .full import Full as Full
from .lora import LoRA as LoRA
