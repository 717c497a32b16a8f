"""One loopback Hub, and one warm client per upload protocol, for all tests of pushing."""

import pytest
import timm
import torch
from hub_push_helpers import IMPORTS
from loopback_hub import LoopbackHub
from support.hub_clients import Client

from timm_mix.hub import save_pretrained


@pytest.fixture(scope="session")
def session_hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(session_hub):
    """Empty, and without faults."""
    session_hub.faults = []
    session_hub.on_kill = lambda: None
    session_hub.repos.clear()
    session_hub.api.renamed.clear()
    session_hub.requests.clear()
    return session_hub


@pytest.fixture(scope="session")
def clients(session_hub, tmp_path_factory):
    """{xet: client}"""
    folder = tmp_path_factory.mktemp("clients")
    with (
        Client(session_hub, xet=True, home=folder / "xet", imports=IMPORTS) as with_xet,
        Client(session_hub, xet=False, home=folder / "lfs", imports=IMPORTS) as with_lfs,
    ):
        yield {True: with_xet, False: with_lfs}


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """A small plain network over an architecture that timm lacks."""
    torch.manual_seed(0)
    model = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=5)
    return save_pretrained(model, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="session")
def ensemble_folder(tmp_path_factory):
    """A small MixMo network over one of timm's own architectures."""
    torch.manual_seed(0)
    model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    return save_pretrained(model, tmp_path_factory.mktemp("ensemble") / "model", label_names=["a", "b", "c"])
