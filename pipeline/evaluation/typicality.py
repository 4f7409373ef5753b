"""How typical texts are of a corpus: their surprise to a small model of characters fitted on held-out text.

NumPy, on the driver. Read in both directions against the surprise of other held-out text: far above it, a text is
noise; far below it, the text is made of the corpus's commonest turns only, which is what blur is in a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.tokens import gram_ids, number

ORDER = 5
"""Characters of the longest n-gram, the one that is predicted included."""


def reference_bits(texts: Sequence[str], reference: Sequence[str], order: int = ORDER) -> tuple[np.ndarray, np.ndarray]:
    """Bits that each text costs under an interpolated n-gram model of characters fitted on `reference`, float64 `[N]`,
    and how many characters it has, int64 `[N]`.

    Each order backs off to the next lower, the lowest to equal chances of all characters seen and one for all others.
    A text's first characters have shorter contexts. Source: Witten and Bell (1991), method C; interpolated as in Chen
    and Goodman (1999), eq. 20.
    """
    fitted, asked = number([reference, texts], "characters")
    both = fitted.followed_by(asked)
    known = len(fitted.ids)
    grams = gram_ids(both, order)
    starts = np.cumsum(both.lengths) - both.lengths
    place = np.arange(len(both.ids)) - starts[both.text]
    chance = np.full(len(asked.ids), 1 / (len(np.unique(fitted.ids)) + 1))
    for n in range(1, order + 1):
        # The n-gram that ends at each token of the asked texts, and its first n - 1 tokens: the context.
        ends = known + np.flatnonzero(place[known:] >= n - 1)
        gram, context = grams[n - 1], (grams[n - 2] if n > 1 else np.zeros(len(both.ids), np.int64))
        seen = np.flatnonzero(grams[n - 1][:known] >= 0)
        gram_count = np.bincount(gram[seen], minlength=int(gram.max(initial=0)) + 1)
        context_count = np.bincount(context[seen], minlength=int(context.max(initial=0)) + 1)
        kinds_gram, first = np.unique(gram[seen], return_index=True)
        followers = np.bincount(context[seen[first]], minlength=len(context_count))
        assert len(kinds_gram) == int((gram_count > 0).sum())
        begins = ends - (n - 1)
        total, kinds = context_count[context[begins]], followers[context[begins]]
        met = total > 0
        lower = chance[ends - known]
        mixed = (gram_count[gram[begins]] + kinds * lower) / np.maximum(1, total + kinds)
        chance[ends - known] = np.where(met, mixed, lower)
    return np.bincount(asked.text, weights=-np.log2(chance), minlength=len(asked)), asked.lengths
