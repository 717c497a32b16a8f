import pytest
from input_runs import Scripts, without_pictures, write_images


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    return Scripts(write_images(tmp_path / "images"), tmp_path / "out")
