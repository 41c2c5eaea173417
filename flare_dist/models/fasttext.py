"""A linear classifier of texts, fastText (Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification")."""

from __future__ import annotations

from torch import Tensor, nn

from flare_dist.vocabulary import Vocabulary


class FastText(nn.Module):
    """Score the classes of a text by the mean of its tokens' embeddings, padding left out.

    Takes tokens int64 [b, T] and gives scores [b, num_classes]. The paper's bags also hold pairs of words.
    """

    def __init__(self, vocabulary: Vocabulary, num_classes: int, embedding_size: int = 64) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary.size, embedding_size)
        self.head = nn.Linear(embedding_size, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        is_text = self.vocabulary.attention_mask(tokens)[..., None].to(self.embedding.weight.dtype)
        total = (self.embedding(tokens) * is_text).sum(-2)
        return self.head(total / is_text.sum(-2).clamp(min=1))


def fasttext(input_shape: tuple[int, ...], num_classes: int, vocabulary: Vocabulary | None = None) -> nn.Module:
    """Build the classifier; raises ValueError for what is no text of a known vocabulary."""
    if len(input_shape) != 1 or vocabulary is None:
        raise ValueError(f"it classifies text (data.name=text), got inputs of shape {input_shape}")
    return FastText(vocabulary, num_classes)
