"""What samplers need of a schedule and of rows."""

from mdlm.processes.base import Process


def rates_differ(process: Process, does: str) -> str | None:
    """Why a sampler with one rate for all tokens cannot be used; None if the schedule has one."""
    if not process.schedule.per_token:
        return None
    return (
        f"it {does} all tokens at one rate, but the schedule has a rate for each token;"
        " use sampler=Reverse()"
    )


def no_inverse(process: Process, asks_at: str) -> str | None:
    """Why a sampler that computes times from noise levels cannot be used; None if the schedule has
    an inverse."""
    if process.schedule.has_inverse:
        return None
    name = type(process.schedule).__name__
    return f"it needs the time of {asks_at}, but {name} has no inverse"


def check_length(block_size: int, length: int) -> None:
    """Raises ValueError if rows of this length do not consist of whole diffusion blocks."""
    if length % block_size:
        raise ValueError(f"block_size={block_size} does not divide the length of {length}")
