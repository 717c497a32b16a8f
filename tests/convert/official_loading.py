"""What the tests of the converters share: the forms of a checkpoint, and how one that does not fit is met."""

import pytest
import torch

import timm_mix


def given_as(form, checkpoint, folder):
    """The checkpoint as load_official takes it: the path of its file, or the state_dict in it."""
    if form == "state_dict":
        return checkpoint["state_dict"]
    path = folder / "checkpoint.pth"
    torch.save(checkpoint, path)
    return path


def assert_refused(model, state, message):
    """One line that names the keys; nothing of the model is written over."""
    for tensor in model.state_dict().values():
        tensor.fill_(3)
    with pytest.raises(ValueError, match=message) as error:
        timm_mix.load_official(model, state)
    assert "\n" not in str(error.value)
    assert all((value == 3).all() for value in model.state_dict().values())
