"""`--val`: which pictures are held out."""

from __future__ import annotations

from peft_core.errors import PeftError


def share_of(val: str | None) -> float | None:
    """What share of the pictures `--val` holds out; None where it is a folder.

    Raises:
        PeftError: no share.
    """
    try:
        share = None if val is None else float(val)
    except ValueError:
        return None
    if share is not None and not 0 < share < 1:
        raise PeftError(f"--val {val} must be a share between 0 and 1, or a folder of pictures.")
    return share


def set_aside(count: int, share: float | None, seed: int, data: str) -> set[int]:
    """Which of `count` pictures are held out: drawn by the seed, at least one of them and not all.

    Raises:
        PeftError: there is but one.
    """
    if share is None:
        return set()
    if count < 2:
        raise PeftError(f"{data} has {count} picture, too few to hold some out: leave --val out, or give it a folder.")
    import torch
    from peft_data.batches import generator_of

    order = torch.randperm(count, generator=generator_of(seed, 4)).tolist()
    return set(order[: min(count - 1, max(1, round(share * count)))])
