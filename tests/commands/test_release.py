"""release.py: from a run to a folder whose figures are those of its very weights."""

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import weights_check
from safetensors.torch import load_file
from script_runs import NAMES, VALIDATION, scored
from support.registry import registered
from support.trainer_runs import forget_accelerator
from support.weight_folders import assert_complete, quoted_flags, results_of

from timm_mix.card import make_card
from timm_mix.commands import finetune, release, validate
from timm_mix.commands.train import main as train
from timm_mix.lab.release import releasing
from timm_mix.lab.release.weights_table import weights_table
from timm_mix.train.errors import UsageError, run_script
from timm_mix.train.evaluate import run as evaluation
from timm_mix.train.loop.results import checkout_commit
from timm_mix.train.settings.config import parse_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning"),
]
MIXMO = "mixmo_wrn16_2_m2.digits"
FOLDED = "wrn16_2.mixmo_m2_digits"
MODELS = {
    "mixmo": ["--model", "mixmo_wrn16_2_m2", "--task", "mixmo", "--mix", "prob=0.5"],
    "splitnet": ["--model", "splitnet", "--model-kwargs", "backbone=wrn16_4", "split=2", "--task", "cotraining"],
    "deep": ["--model", "wrn16_2", "--model-kwargs", "depth=10"],
    "plain": ["--model", "wrn16_2"],
}


@pytest.fixture(scope="module", autouse=True)
def _short_throughput():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "THROUGHPUT_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Finished runs of one epoch by name."""
    root = tmp_path_factory.mktemp("runs")
    for name, flags in MODELS.items():
        data = ["--data-dir", str(images), "--img-size", "16", "--aug", "small", "--workers", "0", "--batch-size", "12"]
        place = ["--output", str(root), "--experiment", name, "--cpu", "--epochs", "1", "--lr", "0.01"]
        train([*data, *place, *flags])
        forget_accelerator()
    return root


def _release(run, output, *flags):
    given = ["--tag", "digits", "--data-name", "noise", "--workers", "0", "--output", str(output)]
    try:
        return release.main([str(run), *given, *flags])
    finally:
        forget_accelerator()


@pytest.fixture(scope="module")
def released(runs, tmp_path_factory):
    """The folder of releases: the ensemble and its folded network."""
    output = tmp_path_factory.mktemp("weights")
    _release(runs / "mixmo", output)
    _release(runs / "mixmo", output, "--fold", "--tag", "mixmo_m2_digits")
    return output


def _validated(flags, output):
    try:
        validate.main([*flags, "--workers", "0", "--output", str(output)])
        return results_of(output)
    finally:
        forget_accelerator()


@pytest.mark.parametrize("name", [MIXMO, FOLDED])
def test_a_release_is_complete(released, name):
    assert_complete(released / name)
    assert (released / name / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_a_network_has_by_default_does_not_keep_it_from_a_tag(runs, tmp_path):
    assert "global_pool" in json.loads((runs / "plain" / "model" / "config.json").read_text())["model_args"]
    assert _release(runs / "plain", tmp_path, "--tag", "recursivemix_digits")["name"] == "wrn16_2.recursivemix_digits"


def test_weights_are_the_runs_in_float16(runs, released):
    saved = timm.create_model(f"local-dir:{runs / 'mixmo' / 'model'}", pretrained=True)
    state = load_file(released / MIXMO / "model.safetensors")
    for key, tensor in saved.state_dict().items():
        assert torch.equal(state[key], tensor.half() if tensor.is_floating_point() else tensor), key
    folded = timm.create_model(f"local-dir:{released / FOLDED}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(folded(x), saved.eval()(x), rtol=0, atol=0.01)


def test_figures_are_those_of_the_float16_weights(released, images):
    results = results_of(released / MIXMO)
    model = timm.create_model(f"local-dir:{released / MIXMO}", pretrained=True).eval()
    top1, nll = scored(model, images)
    row = results["figures"]["ensemble_logits"]
    assert (row["top1"], results["data"]["images"]) == (top1, VALIDATION)
    assert row["nll"] == pytest.approx(nll, rel=1e-5)
    assert list(results["figures"]) == ["member_0", "member_1", "ensemble_logits", "ensemble_softmax", "folded"]
    plain = results_of(released / FOLDED)
    assert list(plain["figures"]) == ["model"]
    assert plain["folded_from"] == "mixmo_wrn16_2_m2"
    assert plain["figures"]["model"]["nll"] == pytest.approx(row["nll"], rel=0.01)


@pytest.mark.parametrize("name", [MIXMO, FOLDED])
def test_the_quoted_line_gives_the_quoted_top1(released, images, tmp_path, name):
    results = results_of(released / name)
    again = _validated(quoted_flags(results, images), tmp_path)
    assert again["figures"] == results["figures"]


def test_a_release_in_the_shipped_folder_is_quoted_by_its_name(runs, images, tmp_path, monkeypatch):
    monkeypatch.setattr(releasing, "shipped_folder", lambda: tmp_path)
    results = _release(runs / "mixmo", tmp_path)
    flags = quoted_flags(results, images)
    assert flags[:2] == ["--model", MIXMO]
    with registered(tmp_path):
        assert _validated(flags, tmp_path / "again")["figures"] == results_of(tmp_path / MIXMO)["figures"]


def test_the_recipe_holds_every_setting_of_the_run(runs, released):
    run = json.loads((runs / "mixmo" / "results.json").read_text())["config"]
    again = parse_config(["--config", str(released / MIXMO / "recipe.yaml")]).flat()
    different = {key for key in run if json.loads(json.dumps(again[key])) != run[key]}
    assert different == {"data_dir", "workers", "cpu", "output", "experiment"}
    text = (released / MIXMO / "recipe.yaml").read_text()
    assert "epochs: 1" in text
    assert "momentum" not in text  # a default


def test_results_say_how_the_weights_came_about(runs, released):
    run = json.loads((runs / "mixmo" / "results.json").read_text())
    results = results_of(released / MIXMO)
    training = results["training"]
    assert (training["seed"], training["hardware"]) == (run["seed"], run["hardware"])
    assert training["versions"] == run["versions"]
    assert (training["export"], training["epochs"]) == ("last", 1)
    assert training["command"].endswith("recipe.yaml --data-dir DATA")
    assert training.get("commit") == run["commit"] == checkout_commit()  # none where the sources are no checkout
    assert results["license"] == "apache-2.0"
    assert str(runs) not in (released / MIXMO / "results.json").read_text()  # no path of this machine


def test_the_generic_name_becomes_the_registered_one(runs, tmp_path):
    results = _release(runs / "splitnet", tmp_path)
    assert results["name"] == "splitnet_wrn16_4_s2.digits"
    config = json.loads((tmp_path / results["name"] / "config.json").read_text())
    assert config["architecture"] == "splitnet_wrn16_4_s2"
    assert config["label_names"] == NAMES
    with registered(tmp_path):
        model = timm.create_model("splitnet_wrn16_4_s2.digits", pretrained=True)
        assert (model.num_classes, model.pretrained_cfg["label_names"]) == (3, tuple(NAMES))


def test_released_weights_are_fine_tuned_by_their_name(released, images, tmp_path, capsys):
    data = ["--data-dir", str(images), "--workers", "0", "--batch-size", "12"]
    flags = ["--model", MIXMO, "--linear-probe", "--epochs", "1", "--cpu", "--output", str(tmp_path)]
    with registered(released):
        finetune.main([*data, *flags, "--experiment", "run"])
        start = timm.create_model(MIXMO, pretrained=True).state_dict()
    forget_accelerator()
    ended = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).state_dict()
    changed = {key for key, tensor in ended.items() if not torch.equal(tensor, start[key])}
    assert changed == {f"heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}


def _snippets(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def _cached(home, repo_id, folder):
    """The folder as huggingface_hub caches a repository that it has downloaded."""
    commit = "0" * 40
    repository = home / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


@pytest.mark.parametrize("name", [MIXMO, FOLDED])
def test_the_cards_snippets_run(released, tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _cached(tmp_path, f"timm-mix/{name}", released / name)
    hub, local, use = _snippets(released / name)
    assert "hf-hub:" in hub
    assert "hf-hub:" not in local
    with registered(released):
        for first in (hub, local):
            space = {}
            exec(compile(first + use, name, "exec"), space)
            assert space["logits"].shape == (1, 3)
        if name == MIXMO:
            torch.testing.assert_close(space["plain"].eval()(space["x"]), space["logits"])
            assert space["members"].shape == (1, 2, 3)


def test_a_failed_evaluation_leaves_nothing_and_the_earlier_release(runs, released, tmp_path, monkeypatch):
    shutil.copytree(released / MIXMO, tmp_path / MIXMO)
    before = {path.name: path.read_bytes() for path in (tmp_path / MIXMO).iterdir()}

    def fail(*args):
        raise UsageError("no data")

    monkeypatch.setattr(release, "_evaluate", fail)
    for name in (MIXMO, FOLDED):
        flags = ["--fold", "--tag", "mixmo_m2_digits"] if name == FOLDED else []
        with pytest.raises(UsageError, match="no data"):
            _release(runs / "mixmo", tmp_path, *flags)
    assert [path.name for path in tmp_path.iterdir()] == [MIXMO]
    assert {path.name: path.read_bytes() for path in (tmp_path / MIXMO).iterdir()} == before


def test_a_release_is_replaced_and_nothing_else_is(runs, tmp_path):
    first = _release(runs / "mixmo", tmp_path)
    second = _release(runs / "mixmo", tmp_path, "--license", "mit")
    assert (first["license"], second["license"]) == ("apache-2.0", "mit")
    assert results_of(tmp_path / MIXMO)["license"] == "mit"
    (tmp_path / FOLDED).mkdir()
    (tmp_path / FOLDED / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="exists and is not an earlier one"):
        _release(runs / "mixmo", tmp_path, "--fold", "--tag", "mixmo_m2_digits")
    assert (tmp_path / FOLDED / "thesis.tex").read_text() == "x"


def test_a_folder_that_cannot_be_renamed_leaves_the_earlier_release(runs, tmp_path, monkeypatch):
    _release(runs / "mixmo", tmp_path)
    rename = releasing.Path.rename

    def full(path, target):
        if path.name == "new":
            raise OSError("the disk is full")
        return rename(path, target)

    monkeypatch.setattr(releasing.Path, "rename", full)
    with pytest.raises(UsageError, match="the disk is full"):
        _release(runs / "mixmo", tmp_path, "--license", "mit")
    assert_complete(tmp_path / MIXMO)
    assert results_of(tmp_path / MIXMO)["license"] == "apache-2.0"
    assert [path.name for path in tmp_path.iterdir()] == [MIXMO]


def _copy(runs, tmp_path, **changes):
    """A run whose results.json says something else."""
    shutil.copytree(runs / "mixmo", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    config = {**results["config"], **changes.pop("config", {})}
    content = {key: value for key, value in {**results, "config": config, **changes}.items() if value is not None}
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"total_epochs": 3}, [], "must be finished, it has 1 of 3 epochs"),
        ({"best": None}, [], "it has no 'best'"),
        ({"config": {"sun": 1}}, [], "has an unknown key 'sun'"),
        ({}, ["--tag", "a.b"], "--tag must be letters, digits and _, got 'a.b'"),
        ({}, ["--data-name", ""], "say by --data-name what they are called"),
        ({"config": {"pretrained": True}}, [], "whose licence counts: give --license"),
        ({"config": {"pretrained": True}}, ["--license", ""], "cannot release: no licence is called '' on the Hub"),
        ({}, ["--license", "CC BY-NC 4.0"], "cannot release: no licence is called 'CC BY-NC 4.0' on the Hub"),
        ({"config": {"initial_checkpoint": "x.pt"}}, [], "whose licence counts: give --license"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(runs, tmp_path, changes, flags, message):
    run = _copy(runs, tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as error:
        _release(run, tmp_path / "weights", *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "weights").exists()


def test_a_network_without_a_registered_name_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match=r"a tag names an architecture as it is registered, .* with depth=10"):
        _release(runs / "deep", tmp_path)
    with pytest.raises(UsageError, match=r"--fold is for mixmo models, .* holds wrn16_2"):
        _release(runs / "deep", tmp_path, "--fold")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_are_refused(runs, tmp_path):
    run = _copy(runs, tmp_path)
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    with torch.no_grad():
        model.heads[1].bias.fill_(1e6)
    releasing.save_pretrained(model, run / "model")
    with pytest.raises(UsageError, match=r"the weights must fit into float16, heads.1.bias does not"):
        _release(run, tmp_path / "weights")


def test_another_ensemble_than_the_architectures_is_refused(runs, tmp_path):
    run = _copy(runs, tmp_path)
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True, ensemble="max")
    releasing.save_pretrained(model, run / "model")
    with pytest.raises(UsageError, match="joins its members by logits, the run's model by max"):
        _release(run, tmp_path / "weights")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", json.dumps(dict.fromkeys(("config", "epochs", "seed")))])
def test_results_that_are_no_runs_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(
        UsageError, match=r"results.json (cannot be read|must be that of a run of .*, it has no .config)"
    ):
        release.main([str(tmp_path), "--tag", "digits"])


def test_the_script_ends_with_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$") as end:
        run_script(partial(release.main, [str(tmp_path / "none"), "--tag", "digits"]))
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: a release needs the folder of a run, .*\n", err)


def test_a_release_states_the_commit_of_the_training_not_its_own(runs, tmp_path):
    results = _release(_copy(runs, tmp_path, commit="f" * 40), tmp_path / "weights")
    assert results["training"]["commit"] == "f" * 40
    assert f"commit {'f' * 40}" in str(make_card(tmp_path / "weights" / MIXMO))


def test_a_run_without_a_commit_is_said_to_have_none(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(releasing, "checkout_commit", lambda: "e" * 40)
    results = _release(_copy(runs, tmp_path, commit=None), tmp_path / "weights")
    assert "commit" not in results["training"]
    assert results["training"]["released_at"] == "e" * 40
    card = str(make_card(tmp_path / "weights" / MIXMO))
    assert f"trained before it recorded its commit; released at {'e' * 40}" in card


def test_a_release_writes_the_table_beside_it_anew_and_leaves_other_words(runs, tmp_path):
    mark = "<!-- the table below is written by train_scripts/release.py -->\n"
    (tmp_path / "README.md").write_text(f"Words.\n\n{mark}old")
    _release(runs / "mixmo", tmp_path)
    assert (tmp_path / "README.md").read_text() == f"Words.\n\n{mark}\n{weights_table(tmp_path)}"
    assert MIXMO in weights_table(tmp_path)
    (tmp_path / "README.md").write_text("Words.")
    _release(runs / "mixmo", tmp_path)
    assert (tmp_path / "README.md").read_text() == "Words."


def test_the_check_of_quoted_lines_sees_another_top1(released, tmp_path, monkeypatch, capsys):
    quoted = results_of(released / MIXMO)["reproduce"]
    top1 = iter([quoted["top1"], quoted["top1"] + 1e-9])

    def run(command, **kwargs):
        words = quoted["command"].replace("DATA", "images").split()
        assert command[1:-1] == words[1:-1]
        content = {"figures": {"ensemble_logits": {"top1": next(top1)}}}
        (Path(command[-1]) / "results.json").write_text(json.dumps(content))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(weights_check.subprocess, "run", run)
    assert [weights_check.check(released / MIXMO, data) for data in (None, "images", "images")] == [False, True, False]
    needs, same, differs = capsys.readouterr().out.splitlines()
    assert needs.endswith("needs --data")
    assert "DIFFERS" not in same
    assert differs.endswith("DIFFERS")
    monkeypatch.setattr(weights_check, "WEIGHTS", tmp_path)
    assert weights_check.main([]) == 1  # no weights, nothing checked
