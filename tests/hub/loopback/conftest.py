"""A loopback Hub for every test, clients for both upload protocols, and a folder to upload."""

import pytest
from loopback_helpers import CARD, WEIGHTS
from loopback_hub import LoopbackHub
from support.hub_clients import Client


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(params=[True, False], ids=["xet", "lfs"])
def client(request, hub, tmp_path):
    with Client(hub, home=tmp_path / "home", xet=request.param) as client:
        client.xet = request.param
        yield client


@pytest.fixture
def plain(hub, tmp_path):
    with Client(hub, home=tmp_path / "home") as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in (("config.json", b"{}"), ("README.md", CARD), ("model.safetensors", WEIGHTS)):
        (folder / name).write_bytes(data)
    return str(folder)
