"""The tokens of a text: how many there are, and which of them fills up a text that is too short.

Decision: inputs of text are one tensor of tokens, [b, T], padded on the right, and a model that looks at all places
derives the attention mask from them and the pad token, which its builder is given. A second tensor would be as large as
the first, and would close the fast paths (resident batches, recorded steps, clients as one batch); a decoder of
Hugging Face that classifies needs the pad token anyway, to find the last token of a text. Models that only look back,
as those of next_token, need no mask: padding stands behind the text, and its labels are ignored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Vocabulary(NamedTuple):
    """Describe the tokens of a text, 0 to size - 1; `pad` is the one that fills up, None if there is none.

    A model's builder that has a parameter `vocabulary` is given it: (input_shape, num_classes, vocabulary, **options).
    """

    size: int
    pad: int | None = None

    def attention_mask(self, tokens: Tensor) -> Tensor:
        """Tell which places of `tokens`, [b, T], hold text: bool [b, T], False behind the last that is no padding.

        A pad token between others counts as text, for often the end-of-text token is both.
        """
        if self.pad is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return (tokens != self.pad).flip(-1).cumsum(-1).flip(-1) > 0
