"""A recurrent model of text, character by character, as in FLARE's Shakespeare runs (Greidi & Cohen 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from flare_dist.vocabulary import Vocabulary


class CharacterGRU(nn.Module):
    """Score the next character at every place: an embedding of 256 and one GRU layer of 1024.

    Takes codes int64 [b, T] and gives scores [b, num_classes, T]; 4,048,470 weights for 86 characters.
    """

    def __init__(self, num_classes: int, embedding_size: int = 256, hidden_size: int = 1024) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_size)
        self.gru = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, codes: Tensor) -> Tensor:
        hidden, _ = self.gru(self.embedding(codes))
        return self.head(hidden).transpose(1, 2)


def gru(input_shape: tuple[int, ...], num_classes: int, vocabulary: Vocabulary | None = None) -> nn.Module:
    """Build the model for sequences of any length; raises ValueError for images, and for classes of whole texts."""
    check_text(input_shape, num_classes, vocabulary)
    return CharacterGRU(num_classes)


def check_text(input_shape: tuple[int, ...], num_classes: int, vocabulary: Vocabulary | None) -> None:
    """Raise ValueError unless inputs are texts whose tokens are the classes."""
    if len(input_shape) != 1:
        raise ValueError(f"it reads text (data.name=text or shakespeare), got inputs of shape {input_shape}")
    if vocabulary is not None and vocabulary.size != num_classes:
        raise ValueError(
            f"it predicts the next of {vocabulary.size} tokens (task.name=next_token), got {num_classes} classes"
        )
