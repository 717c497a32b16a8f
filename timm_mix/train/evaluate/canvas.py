"""matplotlib without a screen, and pictures that are either whole or not there."""

import importlib.util
from pathlib import Path
from typing import Any

from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_whole

__all__ = ["NO_MATPLOTLIB", "PALETTE", "can_draw", "open_pyplot", "save_figure"]

NO_MATPLOTLIB = "pictures need matplotlib, which is not installed: pip install 'timm_mix[plots]'"

# Okabe and Ito's colours, told apart by colour-blind readers; yellow comes last, it is pale on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")


def can_draw() -> bool:
    """Whether matplotlib is installed.

    >>> can_draw()  # with timm_mix[plots]
    True
    """
    return importlib.util.find_spec("matplotlib") is not None


def open_pyplot() -> Any:
    """matplotlib.pyplot.

    Raises:
        UsageError: matplotlib is not installed.

    >>> open_pyplot().get_backend().lower()  # draws into files alone
    'agg'
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(NO_MATPLOTLIB) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as png, and close it.

    Raises:
        UsageError: it cannot be written.

    >>> figure, axis = open_pyplot().subplots()
    >>> save_figure(figure, Path("empty.png"))
    >>> Path("empty.png").is_file(), open_pyplot().fignum_exists(figure.number)
    (True, False)
    """
    with user_errors(f"write {path}"):
        write_whole(path, lambda stream: figure.savefig(stream, format="png", dpi=120))
    open_pyplot().close(figure)
