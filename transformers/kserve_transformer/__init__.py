"""The transformer service: pictures in, tensors to the predictor, predictions out.

Knows no torch and imports no kserve; `bridge` and `stock` are the two doors to kserve and are
imported only by those who use them.
"""

from kserve_transformer.config import TransformerConfig, load_config
from kserve_transformer.transformer import Transformer

__all__ = ["Transformer", "TransformerConfig", "load_config"]
