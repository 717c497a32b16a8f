"""validate.py: its figures recomputed from the predictions that it saves, on one process and on two."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from script_runs import NAMES, VALIDATION, scored
from validate_runs import OLD_PYPARSING, WHOLE, evaluate, flags_of, on_two_processes

from timm_mix.train.evaluate.corruptions import Corruption

pytestmark = [OLD_PYPARSING, pytest.mark.slow]

FAMILIES = ["contrast", "jpeg"]
EVERYTHING = ["--fold", "--robustness", "--eps", "0", "8", "--corruptions", *FAMILIES, "--save-predictions"]
PREDICTORS = ["member_0", "member_1", "ensemble_logits", "ensemble_softmax", "folded"]


@pytest.fixture(scope="module")
def evaluated(saved, images, tmp_path_factory):
    """The folder of an evaluation with everything in it."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(*flags_of(saved, images, folder), *EVERYTHING)
    return folder


@pytest.fixture(scope="module")
def results(evaluated):
    return json.loads((evaluated / "results.json").read_text())


@pytest.fixture(scope="module")
def predictions(evaluated):
    """Logits of every predictor, [n, K] float64, and the labels."""
    tensors = load_file(evaluated / "predictions.safetensors")
    logits, target = tensors["logits"].double().numpy(), tensors["target"].numpy()
    mean_p = np.mean([_softmax(logits[:, i]) for i in (0, 1)], axis=0)
    rows = [logits[:, 0], logits[:, 1], logits[:, :2].mean(1), np.log(mean_p), logits[:, 2]]
    return dict(zip(PREDICTORS, rows, strict=True)), target


def _softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _nll(z, target):
    z = z - z.max(1, keepdims=True)
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), target]


def _gaps(confidence, correct, groups):
    return sum(abs(correct[g].mean() - confidence[g].mean()) * len(g) for g in groups if len(g)) / len(correct)


def _bins_of(confidence):
    """15 bins (a, b] of equal width, and 15 of equal size."""
    width = np.ceil(15 * confidence).clip(1, 15)
    order = np.argsort(confidence, kind="stable")
    mass = np.arange(len(order)) * 15 // len(order)
    return [np.flatnonzero(width == b) for b in range(1, 16)], [order[mass == b] for b in range(15)]


def test_predictors_are_members_ensembles_and_folded(results):
    assert list(results["figures"]) == PREDICTORS
    assert results["model"]["prediction"] == WHOLE
    assert results["model"]["members"] == 2
    assert results["data"]["images"] == VALIDATION


@pytest.mark.parametrize("name", PREDICTORS)
def test_figures_equal_an_independent_numpy_implementation(name, results, predictions):
    figures, (logits, target) = results["figures"][name], (predictions[0][name], predictions[1])
    order = np.random.default_rng(0).permutation(len(target))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    calibrated = logits.copy()
    calibrated[first] /= figures["temperatures"][1]
    calibrated[second] /= figures["temperatures"][0]
    for suffix, z in (("", logits), ("_calibrated", calibrated)):
        p = _softmax(z)
        confidence, correct = p.max(1), p.argmax(1) == target
        width, mass = _bins_of(confidence)
        wanted = {
            "nll": _nll(z, target).mean(),
            "ece": _gaps(confidence, correct, width),
            "ece_adaptive": _gaps(confidence, correct, mass),
            "brier": ((p - np.eye(len(NAMES))[target]) ** 2).sum(1).mean(),
        }
        for key, value in wanted.items():
            assert figures[key + suffix] == pytest.approx(value, rel=1e-9), key + suffix
    confidence, correct = _softmax(logits).max(1), logits.argmax(1) == target
    wrong = np.cumsum(~correct[np.argsort(-confidence)])
    assert figures["aurc"] == pytest.approx(np.mean(wrong / np.arange(1, len(target) + 1)))
    assert figures["top1"] == pytest.approx(100 * correct.mean())
    assert figures["top5"] == 100  # of three classes
    assert figures["count"] == VALIDATION


@pytest.mark.parametrize("name", PREDICTORS)
def test_temperatures_are_the_best_of_a_fine_grid(name, results, predictions):
    logits, target = predictions[0][name], predictions[1]
    order = np.random.default_rng(0).permutation(len(target))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    for half, fitted in zip(halves, results["figures"][name]["temperatures"], strict=True):
        least = _nll(logits[half] / fitted, target[half]).mean()
        assert all(_nll(logits[half] / t, target[half]).mean() >= least - 1e-9 for t in np.geomspace(0.01, 100, 2001))


def test_diversity_is_counted_on_the_members(results, predictions):
    one, two = (predictions[0][f"member_{i}"] for i in (0, 1))
    target = predictions[1]
    wrong = [z.argmax(1) != target for z in (one, two)]
    found = results["diversity"]
    assert found["disagreement"] == pytest.approx(np.mean(one.argmax(1) != two.argmax(1)))
    both = np.sum(wrong[0] & wrong[1])
    assert found["ratio_error"] == (np.sum(wrong[0] ^ wrong[1]) / both if both else None)
    p, q = _softmax(one), _softmax(two)
    assert found["kl"] == pytest.approx(np.mean(((p - q) * (np.log(p) - np.log(q))).sum(1)) / 2)


def test_the_models_own_prediction_scores_as_a_user_would_score_it(saved, results, images):
    model = timm.create_model(f"local-dir:{saved}", pretrained=True).eval()
    top1, nll = scored(model, images)
    assert results["figures"][WHOLE]["top1"] == pytest.approx(top1)
    assert results["figures"][WHOLE]["nll"] == pytest.approx(nll, rel=1e-4)


def _user_figures(saved, images, change):
    """Top-1 and NLL of the ensemble over changed pixels, image by image."""
    model = timm.create_model(f"local-dir:{saved}", pretrained=True).eval()
    hits, nll = 0, 0.0
    paths = sorted((images / "val").rglob("*.png"))
    for index, path in enumerate(paths):
        label = NAMES.index(path.parent.name)
        with Image.open(path) as image:
            x = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
        x = change(model, x, label, index)
        log_p = model((x[None] - 0.4) / 0.2)[0].double().log_softmax(0)
        hits += int(log_p.argmax()) == label
        nll -= float(log_p[label].detach())
    return 100 * hits / len(paths), nll / len(paths)


def test_fgsm_figures_are_those_of_a_loop_over_images(saved, results, images):
    def attack(model, x, label, _):
        x = x.clone().requires_grad_()
        (-model((x[None] - 0.4) / 0.2)[0].log_softmax(0)[label]).backward()
        return (x.detach() + 8 / 255 * x.grad.sign()).clamp(0, 1)

    fgsm = results["fgsm"]
    assert fgsm["eps"] == [0, 8]
    for name in PREDICTORS:  # without a step nothing changes
        assert fgsm["figures"][name]["top1"][0] == results["figures"][name]["top1"]
        assert fgsm["figures"][name]["nll"][0] == pytest.approx(results["figures"][name]["nll"], rel=1e-12)
    top1, nll = _user_figures(saved, images, attack)
    assert fgsm["figures"][WHOLE]["top1"][1] == pytest.approx(top1)
    assert fgsm["figures"][WHOLE]["nll"][1] == pytest.approx(nll, rel=1e-3)
    assert nll > results["figures"][WHOLE]["nll"]


@pytest.mark.parametrize("family", FAMILIES)
def test_corruption_figures_are_those_of_a_loop_over_images(family, saved, results, images):
    for severity in (1, 5):

        def change(_, x, __, index, severity=severity):
            grid = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            return torch.tensor(Corruption(family, severity)(grid, index)).permute(2, 0, 1) / 255

        top1, nll = _user_figures(saved, images, change)
        row = results["corruptions"]["families"][family][WHOLE]
        assert row["top1"][severity - 1] == pytest.approx(top1)
        assert row["nll"][severity - 1] == pytest.approx(nll, rel=1e-4)


def test_the_mean_over_corruptions_is_over_families_and_severities(results):
    corruptions = results["corruptions"]
    for name in PREDICTORS:
        rows = [corruptions["families"][family][name]["top1"] for family in FAMILIES]
        assert corruptions["mean"][name]["top1"] == pytest.approx(np.mean(rows))


def test_a_ready_set_scores_as_its_images_do(saved, images, tmp_path):
    pixels = [np.asarray(Image.open(path)) for path in sorted((images / "val").rglob("*.png"))]
    labels = [NAMES.index(path.parent.name) for path in sorted((images / "val").rglob("*.png"))]
    (tmp_path / "ready").mkdir()
    np.save(tmp_path / "ready" / "none.npy", np.stack(pixels * 5))
    np.save(tmp_path / "ready" / "labels.npy", np.array(labels * 5))
    flags = flags_of(saved, images, tmp_path / "out")
    content = evaluate(*flags, "--corruptions-dir", str(tmp_path / "ready"))
    for name, figures in content["figures"].items():
        row = content["corruptions"]["families"]["none"][name]
        assert row["top1"] == [figures["top1"]] * 5
        assert row["nll"] == pytest.approx([figures["nll"]] * 5, rel=1e-12)


def test_pictures_are_drawn(evaluated):
    drawn = {path.name for path in evaluated.glob("*.png")}
    assert drawn == {f"{name}.png" for name in ("reliability", "members", "risk_coverage", "fgsm", "corruptions")}
    for name in drawn:
        with Image.open(evaluated / name) as image:
            assert np.asarray(image.convert("L")).std() > 10


def test_without_matplotlib_the_figures_are_written_and_one_line_says_what_pictures_need(
    saved, images, results, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an import of a missing module meets
    evaluate(*flags_of(saved, images, tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "classes.csv"}
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert figures[WHOLE]["top1"] == results["figures"][WHOLE]["top1"]
    said = [line for line in capsys.readouterr().err.splitlines() if "pip" in line]
    assert said == ["pictures need matplotlib, which is not installed: pip install 'timm_mix[plots]'"]


def test_results_state_machine_command_protocol_and_throughput(results):
    assert {"hardware", "versions", "command", "config", "protocol", "model", "data"} <= set(results)
    for name in (WHOLE, "folded"):
        assert results["throughput"][name]["images_per_second"] > 0


def test_mixed_precision_in_channels_last_is_near_float32(saved, images, results, tmp_path):
    content = evaluate(*flags_of(saved, images, tmp_path), "--amp", "--channels-last")
    for name, figures in content["figures"].items():
        assert figures["nll"] != results["figures"][name]["nll"]
        assert figures["nll"] == pytest.approx(results["figures"][name]["nll"], rel=0.05, abs=0.05)


def test_two_processes_give_the_figures_of_one(saved, images, results, evaluated, tmp_path):
    """Seven images, batches of three: neither divides; equal to the last bit."""
    done = on_two_processes(*flags_of(saved, images, tmp_path), *EVERYTHING)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["hardware"]["processes"] == 2
    for section in ("figures", "diversity", "fgsm", "corruptions", "protocol", "model", "data"):
        assert found[section] == results[section], section
    for key, tensor in load_file(evaluated / "predictions.safetensors").items():
        assert torch.equal(load_file(tmp_path / "predictions.safetensors")[key], tensor), key
