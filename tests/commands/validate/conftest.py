"""Fixtures for the tests of validate.py."""

import pytest
from validate_runs import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("saved") / "model")
