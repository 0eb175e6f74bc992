"""Unit vectors in fewer bytes, and back. Pure.

A codec takes a vector to fewer numbers (principal components, its first ones, an autoencoder's, or all of them), and each number to fewer bits. Its name says how:
`pca-192-int4` are 192 principal components of 4 bits, `full-binary` is the sign of every number. What is known of the vectors is learnt from a sample, and kept with the codec, so that
vectors can be made again of their codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "binary": 1}
# Which share of a sample's numbers lies within the range of the code; the rest is clipped. Few steps are better spent on the middle.
WITHIN = {"int8": 0.999, "int4": 0.98}
STEPS = {"int8": 127, "int4": 7}  # on each side of 0


@dataclass(frozen=True)
class Layer:
    """An affine map."""

    weight: np.ndarray  # (inputs, outputs)
    bias: np.ndarray  # (outputs,)


@dataclass(frozen=True)
class Codec:
    """A way to write vectors shorter."""

    name: str
    kind: str  # of BITS
    encoder: tuple[Layer, ...]  # none: the numbers as they are. Between two of them what is negative becomes 0
    decoder: tuple[Layer, ...]
    offset: np.ndarray  # (m,) the middle of each number
    scale: np.ndarray  # (m,) a step of the code; of a binary one, how far from the middle a number is in the mean

    @property
    def bytes(self) -> int:
        """Of a vector's code."""
        return -(-len(self.offset) * BITS[self.kind] // 8)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """The codes of unit vectors (n, dim): (n, m) floats or int8; int4 two, binary eight a byte."""
        numbers = _through(self.encoder, vectors)
        if self.kind.startswith("float"):
            floats: np.ndarray = numbers.astype(self.kind)
            return floats
        steps = (numbers - self.offset) / self.scale
        if self.kind == "binary":
            bits: np.ndarray = np.packbits(steps > 0, axis=1)
            return bits
        most = STEPS[self.kind]
        whole: np.ndarray = np.clip(np.round(steps), -most, most).astype(np.int8)
        if self.kind == "int8":
            return whole
        halves = np.pad(whole + most, ((0, 0), (0, whole.shape[1] % 2))).astype(np.uint8)
        packed: np.ndarray = halves[:, ::2] << 4 | halves[:, 1::2]
        return packed

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Unit vectors (n, dim) again, as near as the code allows."""
        vectors = _through(self.decoder, self._numbers(codes))
        unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def nearness(self, codes: np.ndarray, query: np.ndarray) -> np.ndarray:
        """How near each code's vector is to a unit vector (dim,), up to that vector's own length: an order, made without making the vectors again where the decoder is one map."""
        near: np.ndarray
        if len(self.decoder) > 1:
            near = self.decode(codes) @ query
        else:
            near = self._numbers(codes) @ (self.decoder[0].weight @ query if self.decoder else query)
        return near

    def _numbers(self, codes: np.ndarray) -> np.ndarray:
        count = len(self.offset)
        steps: np.ndarray
        if self.kind.startswith("float"):
            floats: np.ndarray = codes.astype(np.float32)
            return floats
        if self.kind == "binary":
            steps = np.unpackbits(codes, axis=1, count=count).astype(np.float32) * 2 - 1
        elif self.kind == "int4":
            steps = np.stack([codes >> 4, codes & 15], 2).reshape(len(codes), -1)[:, :count].astype(np.float32) - STEPS["int4"]
        else:
            steps = codes.astype(np.float32)
        numbers: np.ndarray = steps * self.scale + self.offset
        return numbers


def names(dim: int) -> list[str]:
    """The codecs worth a look for vectors of so many numbers, ever smaller."""
    half, quarter = dim // 2, dim // 4
    return [
        *(f"full-{kind}" for kind in ("float16", "int8", "int4", "binary")),
        *(f"pca-{half}-{kind}" for kind in ("float16", "int8", "int4", "binary")),
        *(f"pca-{quarter}-{kind}" for kind in ("float16", "int8", "int4", "binary")),
        f"cut-{half}-int8",
        f"cut-{quarter}-int8",
        f"autoencoder-{quarter}-int8",
    ]


def parts(name: str, dim: int) -> tuple[str, int, str]:
    """A codec's name apart: method, numbers, kind. Raises ValueError for a name that says nothing."""
    method, _, rest = name.partition("-")
    count, _, kind = rest.rpartition("-")
    if kind not in BITS or (method == "full") != (not count) or method not in {"full", "pca", "cut", "autoencoder"}:
        raise ValueError(name)
    if not 1 <= (numbers := int(count or dim)) <= dim:
        raise ValueError(name)
    return method, numbers, kind


def fit(name: str, sample: np.ndarray, autoencoder: Callable[[int], tuple[tuple[Layer, ...], tuple[Layer, ...]]]) -> Codec:
    """A codec by its name, for vectors such as these (n, dim). `autoencoder`: trains one of a width on them, and gives the layers of encoder and decoder."""
    dim = sample.shape[1]
    method, count, kind = parts(name, dim)
    encoder: tuple[Layer, ...] = ()
    decoder: tuple[Layer, ...] = ()
    if method == "pca":
        from sklearn.decomposition import PCA

        fitted = PCA(count, random_state=0).fit(sample)
        axes, mean = fitted.components_.astype(np.float32), fitted.mean_.astype(np.float32)
        encoder, decoder = (Layer(axes.T, -mean @ axes.T),), (Layer(axes, mean),)
    elif method == "cut":
        first = np.eye(dim, count, dtype=np.float32)
        encoder, decoder = (Layer(first, np.zeros(count, np.float32)),), (Layer(first.T, np.zeros(dim, np.float32)),)
    elif method == "autoencoder":
        encoder, decoder = autoencoder(count)
    numbers = _through(encoder, sample)
    offset = numbers.mean(0)
    apart = np.abs(numbers - offset)
    scale = apart.mean(0) if kind == "binary" else np.quantile(apart, WITHIN.get(kind, 1.0), axis=0) / STEPS.get(kind, 1)
    return Codec(name, kind, encoder, decoder, offset.astype(np.float32), np.maximum(scale, 1e-9).astype(np.float32))


def arrays(codec: Codec) -> Iterator[tuple[str, np.ndarray]]:
    """All that a codec has learnt, each with its name."""
    for side, layers in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        for place, layer in enumerate(layers):
            yield f"{side}.{place}.weight", layer.weight
            yield f"{side}.{place}.bias", layer.bias
    yield "offset", codec.offset
    yield "scale", codec.scale


def of_arrays(name: str, found: Mapping[str, np.ndarray]) -> Codec:
    """The codec that has learnt this."""

    def layers(side: str) -> tuple[Layer, ...]:
        count = sum(key.startswith(side) for key in found) // 2
        return tuple(Layer(found[f"{side}.{place}.weight"], found[f"{side}.{place}.bias"]) for place in range(count))

    return Codec(name, name.rpartition("-")[2], layers("encoder"), layers("decoder"), found["offset"], found["scale"])


def _through(layers: tuple[Layer, ...], values: np.ndarray) -> np.ndarray:
    for place, layer in enumerate(layers):
        values = (np.maximum(values, 0) if place else values) @ layer.weight + layer.bias
    return values
