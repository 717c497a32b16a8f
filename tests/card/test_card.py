"""Model cards: valid metadata, every figure from results.json, nothing of weights that are not there."""

import copy
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from timm_mix.card import LICENCES, SourceFacts, file_hash, make_card, make_converted_card
from timm_mix.card.methods import METHODS

CARDS = Path(__file__).parents[2] / "model_cards" / "methods"
METRICS = {"accuracy": "top1", "top5_accuracy": "top5", "nll": "nll", "expected_calibration_error": "ece"}
NAMES = ["member_0", "member_1", "ensemble_logits", "ensemble_softmax", "folded"]
# pairwise distinct, so that no figure can stand in the place of another
FIGURES = {
    name: {"top1": 61.2345 + i, "top5": 91.2345 + i, "nll": 1.23456 + i, "ece": 0.12346 + i / 10}
    for i, name in enumerate(NAMES)
}
RESULTS = {
    "kind": "release",
    "name": "mixmo_wrn16_2_m2.digits",
    "hub_id": "timm-mix/mixmo_wrn16_2_m2.digits",
    "license": "apache-2.0",
    "method": "mixmo",
    "folded_from": None,
    "members": 2,
    "prediction": "ensemble_logits",
    "weights": {"file": "model.safetensors", "parameters": 700_001},
    "data": {
        **{"name": "digits", "split": "validation", "images": 359, "train_images": 1439, "classes": 11},
        **{"input_size": [3, 31, 37]},
    },
    "figures": FIGURES,
    "reproduce": {"command": "python train_scripts/validate.py --model mixmo_wrn16_2_m2.digits --output X"},
    "training": {
        **{"command": "python train_scripts/train.py --config R", "seed": 13, "epochs": 17, "export": "last"},
        **{"seconds": 1234.5, "commit": "c" * 40},
        "hardware": {"cpu": "A CPU", "threads": 5, "processes": 1, "device": "cpu"},
        "versions": {"python": "3.11.7", "timm_mix": "0.1.0", "timm": "1.0.31", "torch": "2.15.0"},
    },
}


@pytest.fixture
def write(tmp_path):
    """A folder with results.json (RESULTS with changes, `data.split` for a nested one), config.json and weights."""

    def folder(architecture="mixmo_wrn16_2_m2", **changes):
        results = copy.deepcopy(RESULTS)
        for path, value in changes.items():
            *outer, key = path.split("__")
            place = results
            for name in outer:
                place = place[name]
            place[key] = value
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        results["weights"]["sha256"] = file_hash(tmp_path / "model.safetensors")
        (tmp_path / "results.json").write_text(json.dumps(results))
        (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 11}))
        return tmp_path

    return folder


def test_metadata_are_valid_and_survive_a_round_trip(write, tmp_path):
    card = make_card(write())
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert str(again) == str(card)
    data = again.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "apache-2.0")
    assert data.tags == ["image-classification", "timm", "timm_mix", "mixmo"]
    assert data.datasets == ["digits"]  # the Hub has no name for them
    assert data.model_name == "mixmo_wrn16_2_m2.digits"


def test_data_are_named_as_the_hub_names_them_where_it_has_them(write):
    data = make_card(write(data__name="cifar100")).data
    assert data.datasets == ["uoft-cs/cifar100"]
    assert {result.dataset_type for result in data.eval_results} == {"uoft-cs/cifar100"}
    assert {result.dataset_name for result in data.eval_results} == {"CIFAR-100"}


def test_the_model_index_holds_every_predictors_figures_the_models_own_first(write):
    found = make_card(write()).data.eval_results
    assert [result.metric_name for result in found[:2]] == [
        "top-1 % (ensemble, mean of logits)",
        "top-5 % (ensemble, mean of logits)",
    ]
    assert len(found) == len(NAMES) * len(METRICS)
    titles = {
        "member 0": "member_0",
        "member 1": "member_1",
        "ensemble, mean of logits": "ensemble_logits",
        "ensemble, mean of probabilities": "ensemble_softmax",
        "folded into one plain network": "folded",
    }
    for result in found:
        title = re.search(r"\((.*)\)", result.metric_name)[1]
        value = FIGURES[titles.pop(title) if result.metric_type == "expected_calibration_error" else titles[title]]
        assert result.metric_value == pytest.approx(value[METRICS[result.metric_type]], abs=0.005)
        assert (result.dataset_type, result.dataset_split) == ("digits", "validation")
        assert result.task_type == "image-classification"
    assert titles == {}


def test_the_table_holds_the_figures_and_marks_what_the_model_returns(write):
    text = make_card(write()).text
    assert "| member 1 | 62.23 | 92.23 | 2.2346 | 0.2235 |" in text
    assert "| **ensemble, mean of logits** | 63.23 | 93.23 | 3.2346 | 0.3235 |" in text
    assert "| folded into one plain network | 65.23 | 95.23 | 5.2346 | 0.5235 |" in text


# every figure and fact of results.json that the card states: (place, another value, what the card must then say)
STATED = [
    ("figures__member_0__nll", 7.65432, "7.6543"),
    ("data__images", 12_357, "12,357 images, split"),
    ("data__train_images", 77_773, "77,773 images of"),
    ("data__classes", 29, "29 classes"),
    ("data__input_size", [3, 41, 43], "41x43 pixels"),
    ("data__split", "test", "split `test`"),
    ("weights__parameters", 1_234_577, "1,234,577 parameters"),
    ("training__seed", 977, "seed 977"),
    ("training__epochs", 83, "83 epochs"),
    ("training__seconds", 6000.0, "100.0 minutes"),
    ("training__commit", "d" * 40, "commit " + "d" * 40),
    ("training__command", "torchrun x", "```\ntorchrun x\n```"),
    ("training__hardware", {"cpu": "B", "threads": 3, "processes": 1}, "on B, 3 threads"),
    ("training__hardware", {"cpu": "B", "gpu": "A GPU", "threads": 3, "processes": 4}, "on 4 processes, A GPU"),
    ("training__versions", {"python": "3.12.1", "torch": "9.9"}, "torch 9.9, Python 3.12.1"),
    ("training__export", "best", "The epoch was chosen on split `validation`, on which the figures are measured"),
    ("license", "cc-by-nc-4.0", "cc-by-nc-4.0 (the weights)"),
    ("hub_id", "me/mine", '"hf-hub:me/mine"'),
    ("folded_from", "mixmo_x_m9", "It was `mixmo_x_m9`"),
    ("reproduce__command", "python validate.py --x", "python validate.py --x"),
    ("members", 5, "[1, 5, 11]"),
]


@pytest.mark.parametrize(("place", "value", "wanted"), STATED, ids=[f"{row[0]}-{row[2][:12]}" for row in STATED])
def test_what_the_card_says_follows_results_json(write, place, value, wanted):
    assert wanted not in str(make_card(write()))
    assert wanted in str(make_card(write(**{place: value})))


def test_a_plain_network_has_neither_members_nor_fold(write):
    text = str(make_card(write("wrn16_2", members=None, figures={"model": FIGURES["folded"]}, prediction="model")))
    assert "return_members" not in text
    assert "fold()" not in text
    assert "in bold" not in text
    assert "| the network | 65.23 |" in text


def test_timms_own_architectures_need_no_timm_mix(write):
    changes = {"members": None, "figures": {"model": FIGURES["folded"]}, "prediction": "model", "name": "resnet18.mine"}
    text = make_card(write("resnet18", **changes)).text
    assert "import timm_mix" not in text
    assert 'create_model("hf-hub:' in text
    assert 'create_model("resnet18.mine"' not in text  # nobody declared it
    assert "A small run" not in text
    assert "import timm_mix  # registers the architecture" in make_card(write()).text


def test_another_repository_can_be_named(write):
    text = str(make_card(write(), repo_id="somebody/else"))
    assert '"hf-hub:somebody/else"' in text
    assert "timm-mix/" not in text


@pytest.mark.parametrize("task", METHODS)
def test_every_method_has_a_card_with_its_paper(write, task):
    method = METHODS[task]
    card = make_card(write(method=task))
    assert method.title in card.text
    assert method.about in card.text
    assert card.data.tags[-1] == method.tag
    assert ("arxiv.org/abs" in card.text) == (method.arxiv is not None)
    assert ("## Who to cite" in card.text) == (method.bibtex is not None)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.card], ids=lambda m: m.tag)
def test_papers_are_those_of_the_method_cards(method):
    written = (CARDS / method.card).read_text()
    assert f"```bibtex\n{method.bibtex}\n```" in written
    assert f"arxiv.org/abs/{method.arxiv}" in written


def test_every_method_card_has_its_method():
    assert {method.card for method in METHODS.values() if method.card} == {path.name for path in CARDS.glob("*.md")}


def test_weights_that_the_figures_are_not_of_are_refused(write):
    folder = write()
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"were measured with other weights than .*; release it anew"):
        make_card(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="other weights than"):
        make_card(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", '{"kind": "validation"}', "must be of kind 'release', got 'validation'; make the folder with"),
        ("results.json", "{}", "must be of kind 'release', got None"),
        ("results.json", "{", "results.json must be JSON, got"),
        ("results.json", "[]", "results.json must be a JSON object, got list"),
        ("config.json", "{", "config.json must be JSON"),
        ("results.json", None, "a card needs .*results.json, which cannot be read: No such file"),
        ("config.json", None, "a card needs .*config.json, which cannot be read"),
    ],
)
def test_a_folder_without_its_facts_is_refused(write, name, text, message):
    folder = write()
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        make_card(folder)
    assert "\n" not in str(error.value)


FACTS = SourceFacts("splitnet", "wide_resnet28_10", "best.pth", "ab" * 32, LICENCES["splitnet"])


def test_a_converted_card_follows_the_licence_of_its_source(write):
    card = make_converted_card(write("splitnet_wide_resnet28_10_s2"), FACTS)
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.tags == ["image-classification", "timm", "timm_mix", "splitnet", "converted"]
    assert card.data.library_name == "timm"
    assert card.data.eval_results is None
    for fact in ("cc-by-nc-4.0: conversion", "`splitnet`", "`wide_resnet28_10`", "`best.pth`", "ab" * 32, "11 classes"):
        assert fact in card.text
    assert "accuracy of these weights has not been measured" in card.text
    assert METHODS["cotraining"].bibtex in card.text


def test_a_source_that_nobody_published_is_refused(write):
    facts = SourceFacts("mine", "x", "y", "z", "mit")
    with pytest.raises(ValueError, match="source must be one of mixmo, splitnet, recursivemix, openmixup, got 'mine'"):
        make_converted_card(write(), facts)
