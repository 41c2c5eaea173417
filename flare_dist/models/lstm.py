"""The recurrent model of FedAvg's Shakespeare runs (McMahan et al. 2017), character by character."""

from __future__ import annotations

from torch import Tensor, nn

from flare_dist.models.gru import check_text
from flare_dist.vocabulary import Vocabulary


class CharacterLSTM(nn.Module):
    """Score the next token at every place: an embedding of 8 and two LSTM layers of 256.

    Takes tokens int64 [b, T] and gives scores [b, num_classes, T]; 866,825 weights for bytes (published: 866,578).
    """

    def __init__(self, num_classes: int, embedding_size: int = 8, hidden_size: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(tokens))
        return self.head(hidden).transpose(1, 2)


def lstm(input_shape: tuple[int, ...], num_classes: int, vocabulary: Vocabulary | None = None) -> nn.Module:
    """Build the model for sequences of any length; raises ValueError for images, and for classes of whole texts."""
    check_text(input_shape, num_classes, vocabulary)
    return CharacterLSTM(num_classes)
