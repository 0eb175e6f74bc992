"""A canary against silent change: the vectors of fixed texts, kept with the table and compared whenever the model is loaded again.

Updates of libraries and drivers have changed vectors upstream without a word. The model's digest does not see it: its files are the same.

Of vectors longer than SKETCH numbers a sketch is kept, since it is read with every lease: their products with fixed random signs. A sketch of two vectors
has their 1 - cosine within some 18 % (one standard deviation; Johnson and Lindenstrauss 1984). Cost: 16 texts of 575 tokens (0.3 s on one core) a model loaded, 5 kB a table.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latent.encoders.encoder import Encoder
from latent.encoders.library_versions import installed

TEXTS = (
    "a",
    "The canary sings.",
    "When does the night train to Lisbon leave, and is there still a seat by the window?",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # fails if there is none",
    "3.14159 26535 89793 23846; 1,000,000 m²; 2026-11-27T23:59:60Z; £9.99; 50 %",
    "Größere Übermaßprüfungen ärgern flüchtige Käufer, naïve café-goers and Ångström's coöperating façade.",
    "Любопытная канарейка поёт в шахте, пока шахтёры молча слушают её.",
    "Το καναρίνι κελαηδά στο ορυχείο όσο οι εργάτες το ακούν.",
    "يغني الكناري في المنجم بينما يصغي إليه العمال.",
    "הקנרית שרה במכרה והכורים מקשיבים לה.",
    "कोयले की खान में चिड़िया गाती है और मज़दूर सुनते हैं।",
    "矿井里的金丝雀在歌唱，矿工们静静地听着。",
    "炭鉱のカナリアが歌い、鉱夫たちは静かに耳を澄ます。",
    "탄광의 카나리아가 노래하고 광부들은 조용히 듣는다.",
    "🐤⛏️ → 🎶, ∀x∈ℝ: x² ≥ 0, ﬁne, Ⅳ, e\u0301 is é",
    " ".join(
        f"Passage {i} says that layer {i * 7 % 11} of the mine holds {i * i + 3} lamps, {i % 5} birds and no rule that bends."
        for i in range(1, 6)
    ),
)
SKETCH = 128  # numbers that are kept of each vector
# Least cosine to the vectors of then, by the encoder's precision: what processors differ by, some 20 times, was measured (tests/bench/NOTES.md).
LEAST_COSINE = {"float32": 0.9999, "float16": 0.9995, "bfloat16": 0.998, "int8": 0.995}


@dataclass(frozen=True)
class Canary:
    """The vectors of TEXTS as a model made them, and what made them."""

    vectors: npt.NDArray[np.float32]  # (16, at most SKETCH), a row of NaN for a text without a vector
    versions: dict[str, str]

    @staticmethod
    def of(encoder: Encoder) -> Canary:
        """Encode TEXTS."""
        more = ["openvino"] if encoder.loss else []
        return Canary(_sketch(encoder.encode(TEXTS)), installed(more) | {"device": encoder.hardware})

    def cosine_to(self, other: Canary) -> float:
        """The least cosine of a text's two vectors; 0 if only one of them is finite; 1 if none is."""
        if self.vectors.shape != other.vectors.shape:
            return 0.0
        mine, theirs = (np.isfinite(each.vectors).all(axis=1) for each in (self, other))
        if (mine != theirs).any():
            return 0.0
        a, b = (each.vectors[mine].astype(np.float64) for each in (self, other))
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return float(cosines.min(initial=1.0))

    def to_json(self) -> str:
        packed = base64.b64encode(self.vectors.astype("<f2").tobytes()).decode()
        return json.dumps({"vectors": packed, "versions": self.versions})

    @staticmethod
    def from_json(text: str) -> Canary:
        told = json.loads(text)
        vectors = np.frombuffer(base64.b64decode(told["vectors"]), "<f2").reshape(len(TEXTS), -1)
        return Canary(vectors.astype(np.float32), told["versions"])


def _sketch(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The signs come of a hash, since numpy's generators may change from version to version."""
    dim = vectors.shape[1]
    if dim <= SKETCH:
        return vectors
    bits = np.frombuffer(hashlib.shake_256(b"latent").digest(dim * SKETCH // 8), np.uint8)
    signs = np.unpackbits(bits).reshape(dim, SKETCH).astype(np.float32) * 2 - 1
    sketch: npt.NDArray[np.float32] = vectors @ signs / np.float32(SKETCH**0.5)
    return sketch
