"""convert.py: official checkpoint in, hub-ready folder out; synthetic files with the published keys and shapes."""

import json
from functools import partial

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from official_plain_nets import read_archs
from official_splitnet_nets import ARCHS, checkpoint, part_shapes, random_state
from safetensors.torch import load_file

from timm_mix.card import file_hash
from timm_mix.commands import convert
from timm_mix.convert import official_classes, read_official
from timm_mix.train.errors import UsageError, run_script


def _mixmo(classes=7):
    """The published names of a MixMo PreActResNet-18 with two members."""
    model = timm.create_model("mixmo_preact_resnet18_m2", num_classes=classes, device="meta")
    shapes = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in (("encoders.", "list_conv1."), ("heads.", "list_fc."), ("core.", "")):
            key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
        shapes[key.replace(".shortcut.", ".shortcut.0.")] = list(tensor.shape)
    return {"classifier_state_dict": _single(shapes), "epoch": 300}


def _single(shapes, seed=0):
    """A random state_dict in single precision."""
    state = random_state(shapes, seed)
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def _splitnet():
    parts = [_single(part_shapes("resnet110"), seed) for seed in (0, 1)]
    return checkpoint(*parts, prefix="module.")


def _recursivemix():
    return {"epoch": 200, "state_dict": _single(read_archs("recursivemix")["cifar_resnet18"]["shapes"])}


def _openmixup():
    return {
        "meta": {"epoch": 800},
        "state_dict": _single(read_archs("openmixup")["cifar100_resnet18_automix"]["shapes"]),
    }


# source -> (checkpoint, arch, flags, our name, classes, (a key of ours, the official one))
CASES = {
    "mixmo": (
        *(_mixmo, "preactresnetmixmo_18_1", ["--members", "2", "--license", "mit"], "mixmo_preact_resnet18_m2", 7),
        ("encoders.1.weight", "list_conv1.1.weight"),
    ),
    "splitnet": (
        *(_splitnet, "resnet110", ["--members", "2"], "splitnet_resnet110_s2", ARCHS["resnet110"]["num_classes"]),
        ("subnets.1.conv1.weight", None),
    ),
    "recursivemix": (
        *(_recursivemix, "cifar_resnet18", ["--license", "unknown"], "resnet18_cifar"),
        *(read_archs("recursivemix")["cifar_resnet18"]["num_classes"], ("fc.bias", "fc.bias")),
    ),
    "openmixup": (
        *(_openmixup, "cifar100_resnet18_automix", ["--license", "apache-2.0", "--network", "q"], "resnet18_cifar"),
        *(100, ("fc.weight", "head_one_q.fc.weight")),
    ),
}
LICENCES = {"mixmo": "mit", "splitnet": "cc-by-nc-4.0", "recursivemix": "unknown", "openmixup": "apache-2.0"}


@pytest.mark.slow
@pytest.mark.parametrize("source", CASES)
def test_an_official_checkpoint_becomes_a_folder_that_timm_loads(source, tmp_path, capsys):
    make, arch, flags, name, classes, (ours, theirs) = CASES[source]
    content = make()
    torch.save(content, tmp_path / "official.pth")
    command = [str(tmp_path / "official.pth"), "--source", source, "--arch", arch, *flags]
    folder = convert.main([*command, "--output", str(tmp_path / "hub")])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == (name, classes)
    assert not {"tag", "label_names"} & (set(config) | set(config["pretrained_cfg"]))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    own = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, own[key]) for key, tensor in model.state_dict().items())
    if theirs is not None:
        state = next(value for key, value in content.items() if key.endswith("state_dict"))
        assert torch.equal(own[ours], state[theirs])
    else:
        [first] = [t for k, t in content["state_dict"].items() if k.startswith("module.models.1.") and t.ndim == 4][:1]
        assert torch.equal(own[ours], first)
    _check_card(folder, source, arch, file_hash(tmp_path / "official.pth"))
    progress = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in progress[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert name in progress[1]
    assert progress[4] == f"import timm, timm_mix; model = timm.create_model('local-dir:{folder}', pretrained=True)"


def _check_card(folder, source, arch, digest):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == LICENCES[source]
    for fact in (f"`{source}`", f"`{arch}`", "`official.pth`", digest, "has not been measured"):
        assert fact in card.text


@pytest.fixture
def official(tmp_path):
    torch.save(_splitnet(), tmp_path / "official.pth")
    return tmp_path / "official.pth"


SPLITNET = ["--source", "splitnet", "--arch", "resnet110", "--members", "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--source", "mixmo", "--arch", "wideresnet_28_10"],
            "the licence of weights of source mixmo is not known",
        ),
        (["--source", "mix", "--arch", "x"], "invalid choice: 'mix'"),
        (["--source", "splitnet", "--arch", "resnet11"], "cannot convert: arch of source 'splitnet' must be one of"),
        ([*SPLITNET[:-1], "3"], "cannot convert: members of resnet110 must be 1 or"),
        ([*SPLITNET[:-1], "1"], "cannot convert: the checkpoint is of another network: .*of another shape"),
        (
            ["--source", "mixmo", "--arch", "wideresnetmixmo_28_10", "--members", "2", "--license", "mit"],
            "the checkpoint is of another network: it has nothing for heads.0.weight; correct the source",
        ),
        ([*SPLITNET[:-1], "4"], "cannot convert: the checkpoint is of another network: .*missing"),
        ([*SPLITNET, "--license", "CC BY-NC"], "cannot convert: no licence is called 'CC BY-NC' on the Hub"),
        ([*SPLITNET, "--license", ""], "cannot convert: no licence is called '' on the Hub"),
        ([*SPLITNET, "--head", "mix"], "cannot convert: head must be left out for a checkpoint of source 'splitnet'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(official, tmp_path, flags, message):
    with pytest.raises(UsageError, match=message) as error:
        convert.main([str(official), *flags, "--output", str(tmp_path / "hub")])
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the checkpoint must be a file, .*none.pth is none"),
        (b"", "cannot read .*none.pth: .* must be a file that torch.save wrote"),
        (b"\x80\x04K\x01.", "cannot read .*none.pth"),
        ({"epoch": 3}, "must hold one '<wrapper>_state_dict' of tensors or be one"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content, message):
    file = tmp_path / "none.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save(content, file)
    with pytest.raises(UsageError, match=message) as error:
        convert.main([str(file), *SPLITNET, "--output", str(tmp_path / "hub")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow
def test_an_earlier_conversion_is_replaced_and_nothing_else_is(official, tmp_path, capsys):
    target = tmp_path / "hub"
    convert.main([str(official), *SPLITNET, "--output", str(target)])
    assert capsys.readouterr().err == ""
    convert.main([str(official), *SPLITNET, "--license", "mit", "--output", str(target)])
    assert ModelCard.load(target / "README.md").data.license == "mit"
    warned = "warning: the authors released the weights under cc-by-nc-4.0, the card will say mit\n"
    assert capsys.readouterr().err == warned
    (target / "README.md").unlink()
    with pytest.raises(UsageError, match="hub exists and is not an earlier one: give another --output"):
        convert.main([str(official), *SPLITNET, "--output", str(target)])
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [".git", "notes.txt"])
def test_what_the_reader_has_put_into_the_folder_is_not_lost(official, tmp_path, name):
    target = tmp_path / "hub"
    convert.main([str(official), *SPLITNET, "--output", str(target)])
    (target / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"hub holds {name}, which was not written here: give another --output or"):
        convert.main([str(official), *SPLITNET, "--output", str(target)])
    assert (target / name).read_text() == "mine"


def test_the_number_of_classes_is_the_checkpoints(official):
    state = read_official(official)
    for classes in (3, 100):
        model = timm.create_model("splitnet_resnet110_s2", num_classes=classes, device="meta")
        assert official_classes(model, state) == ARCHS["resnet110"]["num_classes"]


def test_the_script_ends_with_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$") as end:
        run_script(partial(convert.main, ["none.pth", *SPLITNET, "--output", str(tmp_path / "hub")]))
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: the checkpoint must be a file, none.pth is none; correct the path\n")
