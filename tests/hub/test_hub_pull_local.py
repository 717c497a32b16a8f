"""What load_pretrained says of folders on this machine and of its cache; no Hub is asked."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from timm_mix.hub import HubError, load_pretrained, local_name, save_pretrained
from timm_mix.hub import pull as _pull


def test_a_saved_folder_is_checked_and_loaded_too(tmp_path):
    save_pretrained(timm.create_model("test_resnet", num_classes=3), tmp_path)
    for source in (tmp_path, str(tmp_path), f"local-dir:{tmp_path}"):
        assert load_pretrained(source, num_classes=4).num_classes == 4
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(HubError, match=r"cannot load .*its model\.safetensors is damaged"):
        load_pretrained(tmp_path)


def test_a_folder_that_is_no_model_is_not_taken_for_one(monkeypatch, tmp_path):
    """Nor is the Hub asked for its name in silence."""
    (tmp_path / "alice" / "members").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in ("alice/members", ".", ""):
        with pytest.raises(HubError, match=r"the folder .* has no config.json; give one .*, or hf-hub:org/name"):
            load_pretrained(source)


# name: (what config.json says over a network of three classes, what a saved head is named and drops, line)
MISFITS = {
    "another number": ({"num_classes": 4}, None, "size mismatch for fc.weight"),
    "another number beside the arguments": (
        {"num_classes": 4, "model_args": {"num_classes": 3}},
        None,
        "contradicts itself: num_classes is 4, the network has 3 classes; save it again",
    ),
    "another number in the arguments": (
        {"model_args": {"num_classes": 4}},
        None,
        "contradicts itself: num_classes is 3, the network has 4 classes; save it again",
    ),
    "none": ({"num_classes": None}, None, "contradicts itself: num_classes is None"),
    "no head": ({}, "fc.", "does not fit its config.json: Missing key.*fc.bias.*; save it again"),
    "no layer": ({}, "layer1.", "does not fit its config.json: Missing key.*layer1"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("classes", [{}, {"num_classes": 5}])
def test_a_folder_whose_config_and_weights_disagree_is_one_line(name, classes, tmp_path):
    """With other classes than the folder's timm itself looks at no key, and leaves random what is not there."""
    said, lost, line = MISFITS[name]
    folder = save_pretrained(timm.create_model("test_resnet", num_classes=3), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    if lost:
        state = load_file(folder / "model.safetensors")
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(lost)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for call in (lambda: load_pretrained(folder, **classes), lambda: local_name(f"local-dir:{folder}")):
        with pytest.raises(HubError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_weights_under_the_names_of_a_plain_network_fit(tmp_path):
    """As timm loads them: what is compared is what is left after its conversion."""
    plain, name = timm.create_model("wrn16_2", depth=10, num_classes=3), "mixmo_wrn16_2_m2"
    folder = save_pretrained(timm.create_model(name, depth=10, num_classes=3), tmp_path / "m")
    save_file(plain.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_pretrained(folder).eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


def test_names_of_timm_and_of_folders_stay_as_they_are():
    assert [local_name(name) for name in ("resnet18", "local-dir:x")] == ["resnet18", "local-dir:x"]


def test_wrong_bytes_that_cannot_be_removed_are_said_to_be_damaged(monkeypatch, tmp_path):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / ("a" * 64)).write_bytes(b"wrong")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / ("a" * 64))
    monkeypatch.setattr(_pull, "_try_download", lambda *_: tmp_path / "model.safetensors")
    monkeypatch.setattr(_pull.Path, "unlink", refuse)
    with pytest.raises(HubError, match=r"is damaged \(.*\) and cannot be removed \(Permission denied\); give another"):
        _pull._download("model.safetensors", {"repo_id": "alice/m"})
