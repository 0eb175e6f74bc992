"""Texts and their tokens, and which of them go through the model together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latent.errors import Failure

ALIKE, FEW = 0.9, 4  # a padded batch takes texts of 0.9 of its longest's length, or a quarter of the budget


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts and their tokens, one array for all of them."""

    texts: Sequence[str]
    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]  # (n + 1,): where each text's tokens begin and end in `ids`
    failed: dict[int, Failure]  # texts that the tokenizer fails on: they have no token
    prompt: str = ""  # before each text; its tokens are among the ids

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """How many each text has, cut off where the model stops reading."""
        return np.diff(self.offsets)

    def of(self, batch: Iterable[int]) -> list[npt.NDArray[np.int32]]:
        """The ids of some texts."""
        return [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in batch]


def batches(tokens: Sequence[int] | npt.NDArray[np.int64], budget: int, alike: float = 0.0) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of texts that go together: at most `budget` tokens once padded to the longest, longest first.

    A batch with a part of the budget in it ends at a text shorter than `alike` of its longest: padding costs as much as tokens do.
    Longest first, so that a batch that does not fit in memory is met at once and not after an hour.
    """
    order = np.argsort(-np.asarray(tokens), kind="stable")
    ascending = -np.asarray(tokens)[order]
    start = 0
    while start < len(order):
        longest = max(1, -int(ascending[start]))
        near = int(np.searchsorted(ascending, -alike * longest, side="right")) - start
        size = max(1, min(budget // longest, max(near, budget // FEW // longest)))
        yield order[start : start + size]
        start += size
