"""Settings of the evaluation: on whom a model is measured beside the whole test set."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.errors import check_range


@dataclass(frozen=True)
class EvaluationConfig:
    """Choose who is measured beside the test set as a whole.

    Args:
        by_group: whether each group (hospital, writer, device, ...) of the test set is measured by itself; the worst,
            the best and the deviation are logged, and all of them under groups in metrics.jsonl.
        client_holdout: fraction of each client's examples that it does not train on, in [0, 1); the global model is
            measured on each client's own. 0 for none. A client of one example holds nothing out.
        personalised: whether each client's own model, as it is after local training, is measured on what the client
            holds out, in rounds with an evaluation.
    """

    by_group: bool = False
    client_holdout: float = 0.0
    personalised: bool = False

    def __post_init__(self) -> None:
        check_range("evaluation.client_holdout", self.client_holdout, "[0, 1)")
        if self.personalised and not self.client_holdout:
            raise ValueError(
                "evaluation.personalised: needs what clients hold out, got evaluation.client_holdout=0; set e.g. 0.2"
            )
