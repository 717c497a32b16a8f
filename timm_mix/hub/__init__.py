"""Save models as folders that timm loads back, push them to the Hugging Face Hub, load them from there.

>>> import timm, timm_mix
>>> from timm_mix.hub import load_pretrained, save_pretrained
>>> folder = save_pretrained(timm.create_model("wrn16_2", depth=10, num_classes=5), "my_model")
>>> load_pretrained(folder).num_classes
5
"""

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
