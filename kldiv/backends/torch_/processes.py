"""Small values of all processes of a group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from kldiv.errors import LibraryError


def gather(value: Any, group: Any) -> list[Any]:
    """Return the value of each process, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise LibraryError(
            "sync needs the processes of torch.distributed: call init_process_group first"
        )
    values: list[Any] = [None for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(values, value, group=group)
    return values
