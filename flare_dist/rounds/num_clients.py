"""How many clients there are: `clients.num`, resolved in one place once the data are known."""

from __future__ import annotations

from flare_dist.clients.config import AUTO
from flare_dist.config.config import Config, with_values
from flare_dist.data.datasets import DataSplits


def resolve_num_clients(config: Config, data: DataSplits) -> Config:
    """Resolve `clients.num` to the number of natural groups in the training examples, if it is auto.

    Raises ValueError that names the key if they have none. If the data are pooled there are no clients, and it stays.
    """
    if config.mode != "federated" or config.clients.num != AUTO:
        return config
    groups = data.train.groups
    if groups is None:
        raise ValueError(
            f"clients.num: auto is the number of natural groups, got data.name={config.data.name}, which has none; "
            "give a number"
        )
    return with_values(config, {"clients.num": len(groups.unique())})
