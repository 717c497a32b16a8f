"""What save_pretrained writes loads in transformers, class names and preprocessing included."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_mix
from timm_mix.hub import save_pretrained

pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore")]

NAMES = ["ant", "bee", "cat", "dog", "eel"]
MODELS = {
    "mixmo": ("mixmo_wrn16_2_m2", {"depth": 10}),
    "mixmo of a backbone": ("mixmo", {"backbone": "resnet18", "members": 3}),
    "splitnet": ("splitnet", {"backbone": "resnet18", "split": 2}),
    "wide": ("wrn16_2", {"depth": 10}),
    "timm's": ("resnet18", {}),
    "folded": ("mixmo_wrn16_2_m2", {"depth": 10}),
    "saved again": ("mixmo", {"backbone": "resnet18", "members": 3}),
}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """A model and its folder."""
    name, settings = MODELS[request.param]
    model = timm.create_model(name, num_classes=len(NAMES), **settings).eval()
    folder = save_pretrained(model, tmp_path / "model", label_names=NAMES)
    if request.param == "folded":
        model = timm_mix.hub.load_pretrained(folder).eval().fold()
        folder = save_pretrained(model, tmp_path / "folded")
    elif request.param == "saved again":
        folder = save_pretrained(timm_mix.hub.load_pretrained(folder), tmp_path / "again")
    return model, folder


def test_a_classifier_with_the_names_of_its_classes(saved):
    from transformers import AutoModelForImageClassification

    model, folder = saved
    assert json.loads((folder / "config.json").read_text())["label_names"] == NAMES
    theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values=images).logits, model(images))
    assert [theirs.config.id2label[i] for i in range(5)] == NAMES


def test_a_pipeline_predicts_what_the_model_predicts(saved):
    from transformers import pipeline

    model, folder = saved
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    found = {one["label"]: one["score"] for one in pipeline("image-classification", str(folder), top_k=5)(image)}
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = model(transform(image)[None]).softmax(1)[0].tolist()
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-4)


def test_a_pipeline_of_several_labels_takes_sigmoids(tmp_path):
    from transformers import pipeline

    model = timm.create_model("test_resnet", num_classes=len(NAMES)).eval()
    folder = save_pretrained(model, tmp_path / "model", label_names=NAMES, multi_label=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    found = {one["label"]: one["score"] for one in pipeline("image-classification", str(folder), top_k=5)(image)}
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        wanted = model(transform(image)[None])[0].sigmoid()
    torch.testing.assert_close(torch.tensor([found[name] for name in NAMES]), wanted, atol=1e-4, rtol=1e-4)


def test_a_backbone_gives_the_features_of_its_stages(saved):
    from transformers import TimmBackbone

    model, folder = saved
    images = torch.rand(1, 3, 64, 64)
    theirs = TimmBackbone.from_pretrained(f"local-dir:{folder}", out_indices=(1, 2)).eval()(images).feature_maps
    ours = model.forward_intermediates(images, indices=(1, 2), intermediates_only=True)
    assert [one.shape for one in theirs] == [one.shape for one in ours]
    for one, two in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, two)
