"""Fixtures for the tests of the converters."""

import logging

import pytest


@pytest.fixture
def quiet(caplog):
    """The line about left-out tensors is asserted in one test, not printed in all."""
    caplog.set_level(logging.WARNING, logger="timm_mix.convert")
