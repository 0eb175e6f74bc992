"""Texts → unit vectors: the only room with torch and sentence-transformers in it.

Texts are tokenised once, ahead of encoding, and sorted by tokens over everything that is given. On a CPU they then go through the transformer packed, one after
another without padding, where the model gives the same vectors so, which is tried when it is loaded; elsewhere in padded batches of texts alike in
length. `tests/bench/speed.py` measures it against what people would otherwise write. Importing the libraries takes 5–20 s and 600 MB: only those who encode import
them.

With precision "int8" the transformer is OpenVINO's, with a loss that is measured and told.

A batch that fails, for want of memory or of anything else, is halved until the guilty text stands by itself.

`encoder` is the room's door; `batching` is which texts go together; `packing` is padding, and attention without it; `int8` is 8-bit arithmetic and
`loss` what it costs; `canary` is fixed texts whose vectors must not change; `reranker` reads a query and a passage together; `autoencoder` makes vectors
smaller.
"""

from latent.encoders.batching import TokenizedTexts, batches
from latent.encoders.canary import LEAST_COSINE, TEXTS, Canary
from latent.encoders.encoder import Encoder, EncodeResult, actual_precision, best_device, gpu_count, loss_of
from latent.encoders.reranker import Reranker

__all__ = [
    "LEAST_COSINE",
    "TEXTS",
    "Canary",
    "EncodeResult",
    "Encoder",
    "Reranker",
    "TokenizedTexts",
    "actual_precision",
    "batches",
    "best_device",
    "gpu_count",
    "loss_of",
]
