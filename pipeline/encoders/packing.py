"""Features of texts, from the ids of their tokens: padded to the longest, or packed one after another in one row.

sentence-transformers packs texts itself where flash attention is installed: the modules after the transformer find each text by `cu_seq_lens_q`. Here is the
attention for machines without it. Texts come sorted by length, so those of one length stand side by side, and each such run is one call of scaled
dot product attention that needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import AttentionInterface
from transformers.activations import GELUActivation

NAME = "latent_packed"


class Padder:
    """Features as sentence-transformers' own, without its asking the tokenizer once more."""

    pads = True

    def __init__(self, model: SentenceTransformer) -> None:
        """Raises AttributeError where the model has no tokenizer that pads."""
        self._pad, self._left = model.tokenizer.pad_token_id or 0, model.tokenizer.padding_side == "left"

    def __call__(self, ids: Sequence[npt.NDArray[np.int32]]) -> dict[str, Any]:
        lengths = np.array([len(each) for each in ids])
        places = np.arange(lengths.max())
        mask = places >= len(places) - lengths[:, None] if self._left else places < lengths[:, None]
        matrix = np.full(mask.shape, self._pad, np.int64)
        matrix[mask] = np.concatenate(ids)
        return {"input_ids": torch.from_numpy(matrix), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def undo(self) -> None:
        """The model is as it was."""


class Packer:
    """Makes features of texts for a model, which takes them until `undo`."""

    pads = False

    def __init__(self, model: SentenceTransformer) -> None:
        """Raises TypeError, or what the model raises, where it has no attention to replace."""
        first = model[0]
        if not isinstance(first, Transformer) or first.model_forward_params is not None:
            raise TypeError(f"{type(first).__name__} takes no packed texts")
        self._first_position = int(first._infer_flatten_position_offset())  # noqa: SLF001 0, but in RoBERTa's family
        self._transformer = first.model
        self._attention = first.model.config._attn_implementation  # noqa: SLF001
        first.model.set_attn_implementation(NAME)

    def __call__(self, ids: Sequence[npt.NDArray[np.int32]]) -> dict[str, Any]:
        """Features of texts that are sorted by length, given as the ids of their tokens."""
        lengths = [len(each) for each in ids]
        positions = np.concatenate([np.arange(length) for length in lengths]) + self._first_position
        return {
            "input_ids": torch.from_numpy(np.concatenate(ids))[None],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seq_lens_q": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            "runs": [(sum(1 for _ in run), length) for length, run in groupby(lengths)],  # texts, and the tokens of each
        }

    def undo(self) -> None:
        """The model takes padded batches again."""
        self._transformer.set_attn_implementation(self._attention)


def lay_out(model: SentenceTransformer, tokens: int) -> None:
    """Weights in the order in which oneDNN multiplies so many tokens by them, bias and GELU within the product. For float32 on a CPU."""
    if model.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return
    for layer in list(model.modules()):
        linears = [name for name, child in layer.named_children() if type(child) is torch.nn.Linear]
        gelu = len(linears) == 1 and isinstance(getattr(layer, "intermediate_act_fn", None), GELUActivation)  # BERT's family
        for name in linears:
            setattr(layer, name, _Linear(getattr(layer, name), "gelu" if gelu else "none", tokens))
        if gelu:
            layer.intermediate_act_fn = torch.nn.Identity()


class _Linear(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, linear: torch.nn.Linear, then: str, tokens: int) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), tokens)  # noqa: SLF001
        self._bias, self._then = linear.bias, then

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(given, self._weight, self._bias, self._then, [], "none")  # noqa: SLF001
        return result


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    runs: list[tuple[int, int]],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text. Query, key and value: (1, heads, tokens, width). The result: (1, tokens, heads, width)."""
    at, parts = 0, []
    for texts, length in runs:
        end = at + texts * length
        # → (texts, heads, length, width), without a copy
        q, k, v = (each[0, :, at:end].unflatten(1, (texts, length)).transpose(0, 1) for each in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scaling, is_causal=getattr(module, "is_causal", False), enable_gqa=query.shape[1] != key.shape[1]
        )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
        at = end
    return torch.cat(parts)[None], None


AttentionInterface.register(NAME, _attention)
