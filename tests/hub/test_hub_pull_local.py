"""What load_pretrained says of folders on this machine and of its cache; no Hub is asked."""

import pytest
import timm

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
