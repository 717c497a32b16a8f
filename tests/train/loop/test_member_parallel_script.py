"""train.py with a part per process: the files of an ordinary run, stopped and resumed, and resumed in one process."""

import json
from pathlib import Path

import pytest
import timm
import torch
from member_parallel_runs import BATCH, SIZE, S, difference, flags
from support.noisy_images import write_noise
from support.processes import finish, free_ports, place, start
from support.trainer_runs import forget_accelerator

from timm_mix.commands.train import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """train/ with 21 and val/ with 7 noisy images of two classes."""
    return write_noise(tmp_path_factory.mktemp("images"), SIZE, {"train": (11, 10), "val": (3, 4)})


@pytest.fixture(scope="module")
def launched(images, tmp_path_factory):
    """The folder of a run of the script on two processes, started as torchrun starts them."""
    out = tmp_path_factory.mktemp("launched")
    [port] = free_ports(1)
    finish(*[start("train_scripts/train.py", *flags(images, out), **place(rank, S, port)) for rank in range(S)])
    return out / "run"


def _checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def test_the_script_leaves_the_files_of_an_ordinary_run(launched):
    assert {path.name for path in launched.iterdir()} == {"results.json", "checkpoints", "model"}
    updates = {f"update_{21 // BATCH * epoch:09d}.pt" for epoch in (1, 2)}
    assert {path.name for path in (launched / "checkpoints").iterdir()} == {"last.pt", "best.pt", *updates}
    results = json.loads((launched / "results.json").read_text())
    assert results["hardware"]["processes"] == S
    assert (results["global_batch_size"], results["steps_per_epoch"]) == (BATCH, 21 // BATCH)
    model = timm.create_model(f"local-dir:{launched / 'model'}", pretrained=True)
    assert results["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    for kind in ("eval", "eval_ema"):
        scores = results["last"] if kind == "eval_ema" else results["epochs"][-1][kind]
        assert scores.keys() >= {"member_0", "member_1", "ensemble"}
        assert scores["ensemble"]["count"] == 7


def test_the_saved_model_and_checkpoint_load_as_an_ordinary_splitnet(launched):
    content = _checkpoint(launched)
    published = timm.create_model(f"local-dir:{launched / 'model'}", pretrained=True)
    assert (type(published).__name__, published.only_part, published.num_members) == ("SplitNet", None, S)
    assert list(published.state_dict()) == list(content["state_dict"]) == list(content["state_dict_ema"])
    assert difference(published.state_dict(), content["state_dict_ema"]) == 0
    assert published(torch.randn(3, 3, SIZE, SIZE), return_members=True).shape == (3, S, 2)


def test_one_process_with_the_whole_model_resumes_the_run(launched, images, tmp_path):
    path = launched / "checkpoints" / "last.pt"
    alone = [flag for flag in flags(images, tmp_path) if flag != "--member-parallel"]
    try:
        results = main([*alone, "--resume", str(path)])
    finally:
        forget_accelerator()
    assert results["epochs"] == json.loads((launched / "results.json").read_text())["epochs"]
    again = _checkpoint(tmp_path / "run")
    assert again["optimizer"]["param_groups"] == _checkpoint(launched)["optimizer"]["param_groups"]
    assert difference(again["state_dict"], _checkpoint(launched)["state_dict"]) == 0


def test_a_resumed_run_ends_like_an_uninterrupted_one(launched, images, tmp_path):
    finish(start(Path(__file__).with_name("member_parallel_runs.py"), "interrupted", tmp_path, images))
    whole, resumed = _checkpoint(launched), _checkpoint(tmp_path / "run")
    assert [row["epoch"] for row in resumed["progress"]["history"]] == [0, 1]
    for name in ("state_dict", "state_dict_ema"):
        assert list(whole[name]) == list(resumed[name])
        assert difference(whole[name], resumed[name]) == 0, name
    for row, other in zip(whole["progress"]["history"], resumed["progress"]["history"], strict=True):
        assert {**row, "train_seconds": 0} == {**other, "train_seconds": 0}
    assert whole["task_states"] == resumed["task_states"]
    momenta = [content["optimizer"]["state"] for content in (whole, resumed)]
    assert momenta[0].keys() == momenta[1].keys()
    for index, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][index]["momentum_buffer"])
