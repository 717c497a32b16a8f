"""Saved folders."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from timm_mix.hub import HubError, push_to_hub, save_pretrained
from timm_mix.hub.client import can_push


@pytest.fixture
def model():
    return timm.create_model("mixmo_wrn16_2_m2", num_classes=3).eval()


def test_ensemble_and_folded_network_reload_by_name(model, tmp_path):
    x = torch.randn(2, 3, 32, 32)
    save_pretrained(model, tmp_path / "ensemble")
    again = timm.create_model(f"local-dir:{tmp_path / 'ensemble'}", pretrained=True).eval()
    torch.testing.assert_close(again(x, return_members=True), model(x, return_members=True), rtol=0, atol=0)
    save_pretrained(model.fold(), tmp_path / "folded")
    assert json.loads((tmp_path / "folded" / "config.json").read_text())["architecture"] == "wrn16_2"


@pytest.mark.slow
def test_folded_network_loads_where_timm_mix_is_not_imported(tmp_path):
    model = timm.create_model("mixmo_resnet18_m2", num_classes=3).eval()
    save_pretrained(model.fold(), tmp_path / "folded")
    x = torch.randn(1, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import sys, timm, torch
model = timm.create_model('local-dir:{tmp_path}/folded', pretrained=True).eval()
assert 'timm_mix' not in sys.modules
torch.save(model(torch.load('{tmp_path}/x.pt')).detach(), '{tmp_path}/y.pt')
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), model(x), rtol=1e-4, atol=1e-5)


def test_class_names_and_data_settings_are_written(model, tmp_path):
    data = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    save_pretrained(model, tmp_path / "m", label_names=["a", "b", "c"], data_config=data)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["label_names"] == ["a", "b", "c"]
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]


def test_the_folded_network_keeps_the_class_names_when_it_is_saved(model, tmp_path):
    save_pretrained(model, tmp_path / "m", label_names=["a", "b", "c"])
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    save_pretrained(again.fold(), tmp_path / "folded")
    plain = timm.create_model(f"local-dir:{tmp_path / 'folded'}", pretrained=True)
    assert plain.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_what_was_known_of_earlier_classes_is_gone_where_new_names_are_given(model, tmp_path):
    model.pretrained_cfg.update({"label_names": ["x", "y", "z"], "label_descriptions": {"x": "an ex"}})
    save_pretrained(model, tmp_path / "m", label_names=["a", "b", "c"])
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert not again.pretrained_cfg.get("label_descriptions")
    assert model.pretrained_cfg["label_names"] == ["x", "y", "z"]
    assert "an ex" not in (tmp_path / "m" / "config.json").read_text()


def test_a_channels_last_model_is_saved_and_left_as_it_was(model, tmp_path):
    model.to(memory_format=torch.channels_last)
    save_pretrained(model, tmp_path / "m")
    assert model.encoders[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_earlier_save_is_replaced_and_nothing_else_is(model, tmp_path):
    save_pretrained(model, tmp_path / "m")
    save_pretrained(model, tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="mine exists and is not a saved model"):
        save_pretrained(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "mine"]


def test_what_else_lies_in_a_saved_folder_stays(model, tmp_path):
    save_pretrained(model, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("mine")
    (tmp_path / "m" / ".git").mkdir()
    with torch.no_grad():
        model.heads[0].bias.fill_(7)
    save_pretrained(model, tmp_path / "m")
    assert (tmp_path / "m" / "README.md").read_text() == "mine"
    assert (tmp_path / "m" / ".git").is_dir()
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert (again.heads[0].bias == 7).all()


def test_an_ensemble_chosen_later_is_saved(model, tmp_path):
    model.ensemble = "softmax"
    save_pretrained(model, tmp_path / "m")
    assert timm.create_model(f"local-dir:{tmp_path / 'm'}").ensemble == "softmax"


def test_a_compiled_model_is_saved_without_its_wrapper(model, tmp_path):
    save_pretrained(torch.compile(model, backend="eager"), tmp_path / "m")
    assert timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).num_members == 2


def test_a_feature_extractor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted a whole model, got FeatureGetterNet without num_classes"):
        save_pretrained(timm.create_model("mixmo_wrn16_2_m2", features_only=True), tmp_path / "m")


def test_one_part_of_a_splitnet_is_refused(tmp_path):
    part = timm.create_model("splitnet", backbone="wrn16_2", split=2, only_part=1)
    with pytest.raises(ValueError, match=r"wanted a whole model, got part 1 of 2 \(only_part\)"):
        save_pretrained(part, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_another_number_of_names_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="label_names must name 3 classes, got 2"):
        save_pretrained(model, tmp_path / "m", label_names=["a", "b"])
    assert not (tmp_path / "m").exists()


def test_a_push_asks_for_a_newer_huggingface_hub_before_anything_else(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.__version__", "0.30.2")
    monkeypatch.setattr("timm_mix.hub.publish.read_release", None)
    wanted = r"cannot push to a/m: pushing needs huggingface_hub 1\.33 or newer, installed is 0\.30\.2 .*; pip install"
    for dry_run in (True, False):
        with pytest.raises(HubError, match=wanted):
            push_to_hub(tmp_path / "nothing", "a/m", dry_run=dry_run, token="t")


@pytest.mark.parametrize(
    ("version", "new_enough"),
    [("0.36.2", False), ("1.9.2", False), ("1.33.0", True), ("1.33.0rc1", True), ("1.100.0", True), ("2.0.0", True)],
)
def test_versions_that_push_are_told_by_number(monkeypatch, version, new_enough):
    monkeypatch.setattr("huggingface_hub.__version__", version)
    assert can_push() == new_enough
