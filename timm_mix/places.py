"""Where the files lie that are not code: in a checkout beside the package, in a wheel within it."""

from pathlib import Path

__all__ = ["PACKAGE", "checkout", "shipped"]

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The root of the checkout that this package lies in; None where it is installed.

    >>> root = checkout()
    >>> root is None or (root / "timm_mix") == PACKAGE
    True
    """
    root = PACKAGE.parent
    return root if (root / "model_cards").is_dir() and (root / "train_scripts").is_dir() else None


def shipped(in_checkout: str, in_package: str) -> Path:
    """A folder of files that ship: `in_checkout` under the root of a checkout, else `in_package` under the package.

    >>> shipped("model_cards/weights", "_weights").is_dir()
    True
    """
    root = checkout()
    return PACKAGE / in_package if root is None else root / in_checkout
