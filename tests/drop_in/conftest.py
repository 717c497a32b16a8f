"""Fixtures for the tests of drop_in: images, and a root logger that outlives timm's script."""

import logging

import pytest
from drop_in_runs import write_digits


@pytest.fixture(autouse=True)
def _logging_as_before():
    """timm's script sets up the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root
