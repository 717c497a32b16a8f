"""Tests that push, where the installed huggingface_hub is too old for it."""

import pytest

from timm_mix.hub.client import OLDEST_TO_PUSH, can_push

NEEDS_PUSH = pytest.mark.skipif(
    not can_push(), reason=f"pushing needs huggingface_hub {'.'.join(map(str, OLDEST_TO_PUSH))}"
)
