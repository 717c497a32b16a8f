"""Checkpoints of the papers' published code -> our models.

>>> from timm_mix.convert import official_model
>>> official_model("splitnet", "wide_resnet50_2", members=2)
'splitnet_wide_resnet50_2e_s2'
"""

from timm_mix.convert.load import load_official, official_classes, official_model, official_network, read_official

__all__ = ["load_official", "official_classes", "official_model", "official_network", "read_official"]
