"""validate.py: its figures recomputed from the predictions that it saves, on one process and on two."""

import json
import math
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from script_runs import NAMES, SCRIPT, SIZE, SMALL, VALIDATION, scored

import validate
from timm_mix.hub import save_pretrained
from trainkit.checkpoint import VERSION, write_checkpoint
from trainkit.corruptions import Corruption
from trainkit.errors import UsageError

# timm hands PIL an open file and leaves closing it to the garbage collector; older releases of matplotlib speak an
# older dialect of pyparsing
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning"),
]

VALIDATE = SCRIPT.with_name("validate.py")
ROOT = SCRIPT.parents[1]
FAMILIES = ["contrast", "jpeg"]
EVERYTHING = ["--fold", "--robustness", "--eps", "0", "8", "--corruptions", *FAMILIES, "--save-predictions"]
PREDICTORS = ["member_0", "member_1", "ensemble_logits", "ensemble_softmax", "folded"]
WHOLE = "ensemble_logits"


def _save(folder, name="mixmo", classes=NAMES, weights=None, **more):
    torch.manual_seed(0)
    kwargs = {"backbone": "wrn16_2", "members": 2} if name == "mixmo" else more
    model = timm.create_model(name, depth=10, widen_factor=1, num_classes=len(classes), **kwargs)
    heads = model.get_classifier()
    with torch.no_grad():
        for head in heads if isinstance(heads, tuple) else [heads]:
            for parameter in head.parameters():  # predictions that differ from image to image
                parameter.mul_(2) if weights is None else parameter.fill_(weights)
    data_config = {"input_size": (3, SIZE, SIZE), "mean": (0.4,) * 3, "std": (0.2,) * 3}
    return save_pretrained(model, folder, label_names=list(classes), data_config=data_config)


def _flags(model, images, output):
    data = ["--data-dir", str(images), "--aug", "none", "--batch-size", "3", "--workers", "0", "--cpu"]
    return ["--model", str(model), *data, "--output", str(output)]


def _evaluate(*flags):
    try:
        return validate.main(flags)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="module", autouse=True)
def _short_throughput():
    """Four passes are enough to see a figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "THROUGHPUT_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def evaluated(saved, images, tmp_path_factory):
    """The folder of an evaluation with everything in it."""
    folder = tmp_path_factory.mktemp("evaluated")
    _evaluate(*_flags(saved, images, folder), *EVERYTHING)
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
    flags = _flags(saved, images, tmp_path / "out")
    content = _evaluate(*flags, "--corruptions-dir", str(tmp_path / "ready"))
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


def test_results_state_machine_command_protocol_and_throughput(results):
    assert {"hardware", "versions", "command", "config", "protocol", "model", "data"} <= set(results)
    for name in (WHOLE, "folded"):
        assert results["throughput"][name]["images_per_second"] > 0


@pytest.mark.parametrize("name", ["wrn16_2", "splitnet"])
def test_plain_and_divided_models_are_evaluated(name, images, tmp_path, capsys):
    more = {"backbone": "wrn16_2", "split": 2, "ensemble": "max"} if name == "splitnet" else {}
    folder = _save(tmp_path / "model", name, **more)
    content = _evaluate(*_flags(folder, images, tmp_path / "out"))
    whole = content["model"]["prediction"]
    assert whole == ("ensemble_max" if more else "model")
    assert ("diversity" in content) == bool(more)
    top1, nll = scored(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), images)
    assert content["figures"][whole]["nll"] == pytest.approx(nll, rel=1e-4)
    assert f"{top1:.2f}" in capsys.readouterr().out
    assert {"reliability.png", "members.png", "risk_coverage.png"} < {p.name for p in (tmp_path / "out").iterdir()}


def test_mixed_precision_in_channels_last_is_near_float32(saved, images, results, tmp_path):
    content = _evaluate(*_flags(saved, images, tmp_path), "--amp", "--channels-last")
    for name, figures in content["figures"].items():
        assert figures["nll"] != results["figures"][name]["nll"]
        assert figures["nll"] == pytest.approx(results["figures"][name]["nll"], rel=0.05, abs=0.05)


@pytest.fixture
def trained(run, tmp_path):
    flags = [
        "--model",
        "mixmo",
        "--model-kwargs",
        *SMALL,
        "members=2",
        "--task",
        "mixmo",
        "--mean",
        "0.3",
        "0.4",
        "0.5",
    ]
    row = run(*flags, "--model-ema", "--model-ema-decay", "0.5")["epochs"][-1]
    return tmp_path / "run" / "checkpoints" / "last.pt", row


def _close(found, reported):
    assert found["top1"] == pytest.approx(reported["top1"])
    assert found["nll"] == pytest.approx(reported["nll"], rel=1e-5)


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_scores_as_its_training_run_reported(ema, trained, images, tmp_path):
    """The checkpoint knows its model, the model's settings and how the images were fed."""
    file, row = trained
    flags = ["--data-dir", str(images), "--workers", "0", "--cpu", "--output", str(tmp_path / "out")]
    flags = ["--model", str(file), *flags, *([] if ema else ["--no-use-ema"])]
    content = _evaluate(*flags)
    assert content["data"]["mean"] == (0.3, 0.4, 0.5)
    reported = row["eval_ema" if ema else "eval"]
    for name in ("member_0", "member_1"):
        _close(content["figures"][name], reported[name])
    _close(content["figures"][WHOLE], reported["ensemble"])
    named = ["--model", "mixmo", "--checkpoint", str(file), *flags[2:]]
    assert _evaluate(*named)["figures"] == content["figures"]


def test_an_evaluation_may_be_repeated_but_replaces_no_training_results(trained, saved, images, tmp_path, evaluated):
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(UsageError, match=r"results.json is not that of an evaluation .*: give another --output"):
        _evaluate(*_flags(saved, images, tmp_path / "run"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert _evaluate(*_flags(saved, images, tmp_path / "new"))["kind"] == "validation"
    assert _evaluate(*_flags(saved, images, tmp_path / "new"))["kind"] == "validation"


def _torchrun(*flags):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return _process([*command, str(VALIDATE), *flags])


def _process(command):
    paths = os.pathsep.join([str(ROOT), str(SCRIPT.parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def test_two_processes_give_the_figures_of_one(saved, images, results, evaluated, tmp_path):
    """Seven images, batches of three: neither divides; equal to the last bit."""
    done = _torchrun(*_flags(saved, images, tmp_path), *EVERYTHING)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["hardware"]["processes"] == 2
    for section in ("figures", "diversity", "fgsm", "corruptions", "protocol", "model", "data"):
        assert found[section] == results[section], section
    for key, tensor in load_file(evaluated / "predictions.safetensors").items():
        assert torch.equal(load_file(tmp_path / "predictions.safetensors")[key], tensor), key


def test_an_image_that_one_process_cannot_read_ends_both_with_one_line(saved, broken_images, tmp_path):
    """The second process reads it; the first one reports it and waits for nobody."""
    done = _torchrun(*_flags(saved, broken_images, tmp_path / "out"))
    assert done.returncode != 0
    assert len(re.findall(r"^error: cannot read image .*bee/1\.png: .*", done.stderr, re.M)) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def broken_images(tmp_path_factory):
    """ant: images 0 to 2, the first batch; bee: 3 to 5, the second one, with a torn image."""
    root = tmp_path_factory.mktemp("broken")
    for name in NAMES:
        (root / "val" / name).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((SIZE, SIZE), 50).convert("RGB").save(root / "val" / name / f"{number}.png")
    file = root / "val" / "bee" / "1.png"
    file.write_bytes(file.read_bytes()[:300])
    return root


# name: (flags over those of a good run, line); {root} is a folder with the files of `material`
MISTAKES = {
    "no such model": (["--model", "mixmo_wrn99", "--pretrained"], "cannot create model 'mixmo_wrn99': Unknown model"),
    "no such folder": (["--model", "local-dir:{root}/nowhere"], "cannot create model 'local-dir:.*nowhere'"),
    "no weights": (["--model", "wrn16_2"], "wrn16_2 needs weights to evaluate: give --checkpoint"),
    "published weights that are not": (["--model", "wrn28_2", "--pretrained"], "cannot create model 'wrn28_2'"),
    "no such checkpoint": (["--model", "wrn16_2", "--checkpoint", "{root}/no.pt"], "must be a file, .*no.pt is none"),
    "torn checkpoint": (["--model", "{root}/torn.pt"], "cannot read checkpoint .*torn.pt"),
    "checkpoint of another model": (
        ["--checkpoint", "{root}/other.pt", "--model", "wrn16_2"],
        "does not fit the model",
    ),
    "two sources of weights": (
        ["--model", "wrn16_2", "--checkpoint", "a", "--initial-checkpoint", "b"],
        "weights come from --checkpoint or --initial-checkpoint, got both",
    ),
    "another number of classes": (
        ["--model", "{root}/four"],
        "same classes, local-dir:.*four has 4, the data have 3",
    ),
    "another order of classes": (["--model", "{root}/order"], "class 0 is 'cat' and 'ant'; give a --class-map"),
    "logits that are not finite": (["--model", "{root}/nan"], "the model's output for image number 0 is not finite"),
    "empty folder": (["--data-dir", "{root}/empty"], "cannot be opened: Found 0 images"),
    "no data folder": (["--data-dir", "{root}/nowhere"], "nowhere does not exist: correct the path"),
    "no such split": (["--split", "tset"], "must hold the split 'tset', it holds train, val"),
    "one class": (["--data-dir", "{root}/one"], r"needs at least 2 classes, the data have 1 \(ant\)"),
    "one image": (["--data-dir", "{root}/single"], "needs at least 2 images, got 1; give another --split"),
    "torn image": (["--data-dir", "{broken}"], r"bee/1.png is no image that can be read \(.*\): replace or remove it"),
    "fold of a plain model": (
        ["--model", "{root}/plain", "--fold"],
        "--fold is for mixmo models, got .*plain; drop",
    ),
    "fold of probabilities": (
        ["--model", "{root}/softmax", "--fold"],
        "cannot fold .* needs ensemble='logits'",
    ),
    "corruption": (["--corruptions", "snow"], "a corruption is one of all, .*, got 'snow'"),
    "two sources of corruptions": (
        ["--corruptions", "jpeg", "--corruptions-dir", "{root}"],
        "corruptions are made by --corruptions or read by --corruptions-dir, got both",
    ),
    "no ready corruptions": (["--corruptions-dir", "{root}/empty"], "wants a folder with labels.npy"),
    "eps": (["--eps", "-1"], r"eps must lie in \[0, 255\], got -1"),
    "batch size": (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
    "workers": (["--workers", "-1"], "workers must be >= 0, got -1"),
    "unknown flag": (["--batchsize", "3"], "unrecognized arguments: --batchsize 3; see"),
    "no model": (None, "the following arguments are required: --model, --output"),
    "model setting": (["--model-kwargs", "depth"], "--model-kwargs takes key=value pairs, got 'depth'"),
    "float16": (["--amp", "--amp-dtype", "float16"], "--amp-dtype float16 needs a GPU"),
    "output in a file": (["--output", "{root}/torn.pt"], "cannot be made, .*torn.pt is a file: give another --output"),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory, broken_images):
    root = tmp_path_factory.mktemp("material")
    (root / "empty" / "val" / "ant").mkdir(parents=True)
    for folder, names, count in (("one", ["ant"], 2), ("single", ["ant"], 1)):
        for name in names:
            (root / folder / "val" / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (SIZE, SIZE)).save(root / folder / "val" / name / f"{number}.png")
    _save(root / "four", classes=[*NAMES, "dog"])
    _save(root / "order", classes=NAMES[::-1])
    _save(root / "nan", weights=math.nan)
    _save(root / "plain", "wrn16_2")
    config = json.loads((_save(root / "softmax") / "config.json").read_text())
    config["model_args"]["ensemble"] = "softmax"
    (root / "softmax" / "config.json").write_text(json.dumps(config))
    unread = ("progress", "facts", "task_states", "own_states", "optimizer", "schedule", "scaler")
    content = {**dict.fromkeys(unread), "version": VERSION, "config": {}, "state_dict": {"w": torch.zeros(3)}}
    with (root / "other.pt").open("wb") as stream:
        write_checkpoint(content, stream)
    (root / "torn.pt").write_bytes((root / "other.pt").read_bytes()[:-99])
    return root


def _mistaken(name, material, broken, saved, images):
    flags = MISTAKES[name][0]
    if flags is None:
        return []
    flags = [flag.format(root=material, broken=broken) for flag in flags]
    return [*_flags(saved, images, material / "out"), *flags]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(name, material, broken_images, saved, images):
    with pytest.raises(UsageError, match=MISTAKES[name][1]) as caught:
        _evaluate(*_mistaken(name, material, broken_images, saved, images))
    assert "\n" not in str(caught.value)
    assert not (material / "out").exists()


def test_the_script_itself_ends_with_one_line_and_status_two(material, broken_images, saved, images):
    flags = _mistaken("torn image", material, broken_images, saved, images)
    done = _process([sys.executable, str(VALIDATE), *flags])
    assert done.returncode == 2, done.stderr
    assert "is no image that can be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
