"""Checkpoints of the papers' published code -> our models."""

from timm_mix.convert.load import load_official, official_classes, official_model, read_official

__all__ = ["load_official", "official_classes", "official_model", "read_official"]
