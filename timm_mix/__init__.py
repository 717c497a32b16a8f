"""Mixed inputs and divided networks for timm; importing it registers the models."""

from timm_mix import hub, metrics, models, views
from timm_mix.convert import load_official, official_model, official_network
from timm_mix.mixers import create_mixer, register_mixer
from timm_mix.models.divide import divide, register_division
from timm_mix.tasks import create_task, register_block, register_task
from timm_mix.version import __version__

__all__ = [
    "__version__",
    "create_mixer",
    "create_task",
    "divide",
    "hub",
    "load_official",
    "metrics",
    "models",
    "official_model",
    "official_network",
    "register_block",
    "register_division",
    "register_mixer",
    "register_task",
    "views",
]
