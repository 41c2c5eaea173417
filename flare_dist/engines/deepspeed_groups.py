"""Give a DeepSpeed engine the process groups of its host, in which no other rank takes part."""

from __future__ import annotations

from flare_dist.comm.collectives import ProcessGroup, alone_group, group_of, ranks_of
from flare_dist.comm.host import Host


class HostGroups:
    """Give an engine the ranks of its host as its whole world, by the methods that DeepSpeed calls on its `mpu`.

    All ranks of all hosts make it together.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._group: ProcessGroup | None
        self._alone: ProcessGroup | None  # nobody divides a layer among ranks
        if host.shards == 1:
            rank, self._group = alone_group()
            self._ranks = [rank]
            self._alone = self._group
        else:
            self._group = host.group
            self._ranks = ranks_of(host.group)
            self._alone = group_of([self._ranks[host.shard]])

    def get_data_parallel_group(self) -> ProcessGroup | None:
        return self._group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self._ranks

    def get_data_parallel_rank(self) -> int:
        return self._host.shard

    def get_data_parallel_world_size(self) -> int:
        return self._host.shards

    def get_model_parallel_group(self) -> ProcessGroup | None:
        return self._alone

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1
