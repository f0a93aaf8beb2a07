from .block import BlockDiT as BlockDiT
from .causal import CausalTransformer as CausalTransformer
from .decoder import Decoder as Decoder
from .dit import DiT as DiT
from .gidd import ScaledTransformer as ScaledTransformer
from .md4 import MD4Transformer as MD4Transformer
from .network import Network as Network
