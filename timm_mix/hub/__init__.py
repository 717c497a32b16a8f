"""Save models as folders that timm loads back, push them to the Hugging Face Hub, load them from there."""

from timm_mix.hub.errors import HubError
from timm_mix.hub.publish import push_to_hub
from timm_mix.hub.pull import fetch, load_pretrained, local_name
from timm_mix.hub.push import PushedFile, PushResult
from timm_mix.hub.save import is_model_folder, save_pretrained

__all__ = [
    "HubError",
    "PushResult",
    "PushedFile",
    "fetch",
    "is_model_folder",
    "load_pretrained",
    "local_name",
    "push_to_hub",
    "save_pretrained",
]
