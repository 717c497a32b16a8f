"""Division rules: (architecture, S) -> the timm keyword arguments of one part; a file per family.

>>> import timm_mix
>>> timm_mix.divide("resnet50", 2)
{'channels': (44, 88, 176, 352)}
>>> timm_mix.divide("resnext50_32x4d", 4)
{'cardinality': 8}
"""

from timm_mix.models.divide.rules import DIVISIONS, divide, register_division

__all__ = ["DIVISIONS", "divide", "register_division"]
