"""Give a DeepSpeed engine process groups that no other rank takes part in."""

from __future__ import annotations

from flare_dist.comm.collectives import ProcessGroup, alone_group


class OwnGroups:
    """Give a rank that trains by itself groups of its own, by the methods that DeepSpeed calls on its `mpu`."""

    def __init__(self) -> None:
        self._rank, self._group = alone_group()

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._group

    get_model_parallel_group = get_data_parallel_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [self._rank]

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_world_size(self) -> int:
        return 1

    get_model_parallel_rank = get_data_parallel_rank
    get_model_parallel_world_size = get_data_parallel_world_size
