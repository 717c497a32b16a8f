"""What the figures have in common."""

__all__ = ["check_samples"]


def check_samples(count: int, least: int, what: str) -> None:
    """At least so many samples.

    >>> check_samples(0, 1, "a risk")
    Traceback (most recent call last):
    ValueError: a risk needs at least 1 sample, got 0
    """
    if count < least:
        raise ValueError(f"{what} needs at least {least} sample{'s' * (least > 1)}, got {count}")
