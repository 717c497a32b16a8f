"""What the figures have in common."""

__all__ = ["check_samples"]


def check_samples(count: int, least: int, what: str) -> None:
    if count < least:
        raise ValueError(f"{what} needs at least {least} sample{'s' * (least > 1)}, got {count}")
