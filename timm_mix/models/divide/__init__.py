"""Division rules: (architecture, S) -> the timm keyword arguments of one part; a file per family."""

from timm_mix.models.divide.rules import DIVISIONS, divide, register_division

__all__ = ["DIVISIONS", "divide", "register_division"]
