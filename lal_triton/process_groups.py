"""The ranks that a loss is pooled over: "rank" (this one), "world", a group, or a callable that returns a group."""

from typing import Any

import torch.distributed as dist

RANK, WORLD = "rank", "world"
EXPECTED = f'expected a torch.distributed.ProcessGroup, "{WORLD}", "{RANK}" or a callable that returns a group'


def check(process_group: Any) -> None:
    if isinstance(process_group, str):
        if process_group not in (RANK, WORLD):
            raise ValueError(f"process_group is {process_group!r}, {EXPECTED}")
    elif not (process_group is None or callable(process_group) or isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(f"process_group is a {type(process_group).__name__}, {EXPECTED}")


def resolve(process_group: Any) -> "dist.ProcessGroup | None":
    """The group, now; None for this rank alone, which is the world where torch.distributed is not initialised."""
    if isinstance(process_group, str):
        # None before init_process_group. A graph has a guard on it, and none on is_initialized().
        return dist.group.WORLD if process_group == WORLD and dist.is_available() else None
    if not callable(process_group):
        return process_group
    group = process_group()
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"process_group returned a {type(group).__name__}, expected a torch.distributed.ProcessGroup")
    return group


def given(process_group: Any) -> Any:
    """What a module keeps: None only where it may be a torch.distributed.group.WORLD that was read too early."""
    return RANK if process_group is None and is_initialized() else process_group


def settle(process_group: Any) -> Any:
    """Of a callable the group. None stays until there is a world, and is refused if that has other ranks."""
    if callable(process_group):
        return resolve(process_group)
    if not is_initialized():
        return None
    if dist.get_world_size() > 1:
        raise ValueError(
            "process_group was None before init_process_group, as torch.distributed.group.WORLD is then, and there are "
            f'{dist.get_world_size()} ranks now, expected "{WORLD}" for all of them, or "{RANK}" for each by itself'
        )
    return RANK


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
