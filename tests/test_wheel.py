"""What is installed: the wheel holds the package and its weights, and does what the README shows, without a network."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from support.noisy_images import write_noise
from support.registry import save_weights

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# packages of files that lie outside of timm_mix/ in a checkout, and where
OUTSIDE = (
    ("_weights", "model_cards/weights"),
    ("_recipes", "train_scripts/recipes"),
    ("_suites", "train_scripts/suites"),
)
SHIPPED = ("mixmo_wrn16_2_m2.digits", "splitnet_wrn16_4_s2.digits", "wrn16_2.mixmo_m2_digits")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def _build(kind, tree, target):
    """The file that setuptools makes of a tree, as `pip install .` has it made."""
    subprocess.run([sys.executable, "-c", BUILD, kind, str(target)], cwd=tree, check=True, capture_output=True)
    [made] = target.iterdir()
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """What a checkout has that matters, with weights under some names even where none ship yet."""
    folder = tmp_path_factory.mktemp("tree") / "timm_mix"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "timm_mix", folder / "timm_mix", ignore=unwanted)
    for _, place in OUTSIDE:
        shutil.copytree(ROOT / place, folder / place, ignore=unwanted)
    for name in SHIPPED:
        if not (folder / "model_cards" / "weights" / name).exists():
            save_weights(folder / "model_cards" / "weights", name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return _build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def _files(tree):
    """Name in the wheel -> file of the tree."""
    code = {str(path.relative_to(tree)): path for path in (tree / "timm_mix").rglob("*.py")}
    found = {str(path.relative_to(tree)): path for path in (tree / "timm_mix").rglob("py.typed")}
    for package, place in OUTSIDE:
        folder = tree / place
        found |= {f"timm_mix/{package}/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}
    return code | found


def _assert_whole(wheel, tree):
    wanted = _files(tree)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert sorted(names) == sorted(wanted)
        assert all(archive.read(name) == wanted[name].read_bytes() for name in names)


def test_the_wheel_holds_the_package_and_its_weights_and_nothing_else(wheel, tree):
    assert "timm_mix/_weights/mixmo_wrn16_2_m2.digits/model.safetensors" in _files(tree)
    _assert_whole(wheel, tree)


def test_the_source_distribution_makes_the_same_wheel(tree, tmp_path):
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    with tarfile.open(_build("sdist", tree, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.glob("timm_mix-*")
    _assert_whole(_build("wheel", unpacked, tmp_path / "wheel"), tree)


def test_every_package_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "timm_mix").rglob("__init__.py")}
    assert set(declared) == found | {f"timm_mix.{package}" for package, _ in OUTSIDE}


# Runs with nothing but the installed package: every python block of the README, statement by statement.
INSTALLED = '''
import ast, pathlib, re, socket, sys
import PIL.Image, timm, torch
import timm_mix

target, readme = sys.argv[1:]
assert pathlib.Path(timm_mix.__file__).is_relative_to(target), timm_mix.__file__

def refuse(*args):
    raise AssertionError("the network is not needed")

def sent_by_the_hub(repository, **kwargs):
    """Weights of a plain backbone, random ones."""
    return timm.create_model(repository.removeprefix("timm/")).state_dict()

socket.socket.connect = refuse
timm.models._builder.load_state_dict_from_hf = sent_by_the_hub
torch.nn.init.trunc_normal_ = lambda tensor, **kwargs: tensor  # takes seconds, and nothing here looks at random weights
assert "mixmo_wrn16_2_m2.digits" in timm.list_pretrained("*mixmo*")
for name in timm.list_pretrained("*wrn16*"):
    cfg = timm.create_model(name, pretrained=True).pretrained_cfg
    assert pathlib.Path(cfg["file"]).is_relative_to(target)

def published_checkpoint():
    """Random tensors under the names of the published MixMo code."""
    state = {}
    for key, tensor in timm.create_model("mixmo_wrn28_10_m2", device="meta").state_dict().items():
        for ours, theirs in (("encoders.", "list_conv1."), ("heads.", "list_fc."), ("core.", "")):
            key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
        state[key.replace(".shortcut.", ".shortcut.0.")] = torch.ones(tensor.shape, dtype=tensor.dtype)
    path = pathlib.Path("path/to/the/papers/checkpoint")
    path.parent.mkdir(parents=True)
    torch.save({"classifier_state_dict": state}, path)

published_checkpoint()
splitnet = timm.create_model("splitnet_wrn16_4_s2", num_classes=37)
images = torch.randn(4, 3, 32, 32)
masks = torch.full((4, 2, 1, 32, 32), 0.5)
given = {
    **{"timm": timm, "timm_mix": timm_mix, "torch": torch, "x": images, "images": images, "criterion": None},
    "my_network": timm.create_model("wrn16_2"),
    **{"xs": images[:, None].repeat(1, 2, 1, 1, 1), "views": images[:, None].repeat(1, 2, 1, 1, 1), "masks": masks},
    **{"target": torch.randint(37, (4,)), "image": PIL.Image.new("RGB", (40, 30))},
}
blocks = re.findall(r"```python\\n(.*?)```", pathlib.Path(readme).read_text(), flags=re.DOTALL)
for block in blocks:
    space = {**given, "model": timm.create_model("mixmo_wrn16_2_m2", num_classes=37)}
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        text = "\\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        of_splitnet = "# SplitNet" in text
        exec(text, {**space, "model": splitnet} if of_splitnet else space)
print(len(blocks), "blocks")
'''


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run a program in an empty folder, beside the libraries with the wheel alone; get what it printed."""
    target, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*command):
        done = subprocess.run(map(str, command), cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.target, run.work = target, work
    return run


def test_the_installed_wheel_does_what_the_readme_shows(installed):
    script = installed.work / "installed.py"
    script.write_text(INSTALLED)
    printed = installed(sys.executable, script, installed.target, ROOT / "README.md")
    assert int(printed.split()[-2]) >= 4


@pytest.mark.timeout(900)  # two trainings, an evaluation and ten starts of Python
def test_the_installed_command_trains_resumes_validates_fine_tunes_and_pushes(installed):
    """What a person does who ran pip install, in a folder that holds nothing but photographs (here: noise)."""
    command = partial(installed, installed.target / "bin" / "timm-mix")
    small = ["--model-kwargs", "backbone=wrn16_2", "depth=10", "widen_factor=1", "members=2"]
    run = ["train", "--config", "digits/mixmo_wrn16_2_m2", "--model", "mixmo", *small, "--experiment", "run", "--cpu"]
    run += ["--epochs", "2", "--workers", "0"]
    assert "epoch 2/2" in command(*run)
    checkpoints = installed.work / "output" / "run" / "checkpoints"
    for name in ("last.pt", max(path.name for path in checkpoints.glob("update_*.pt"))):
        (checkpoints / name).unlink()
    resumed = command(*run, "--resume", "auto")
    assert "epoch 2/2" in resumed
    assert "epoch 1/2" not in resumed
    model = ["--model", "output/run/model"]
    data = ["--dataset", "digits", "--aug", "small", "--workers", "0"]
    assert "folded" in command("validate", *model, *data, "--fold", "--output", "checked", "--cpu")
    assert (installed.work / "checked" / "results.json").is_file()
    write_noise(installed.work / "photographs", 32, {"train": (6, 6), "val": (3, 3)})
    flags = ["--epochs", "1", "--batch-size", "4", "--warmup-epochs", "0", "--workers", "0", "--cpu"]
    source = ["--model", "local-dir:output/run/model", "--data-dir", "photographs", "--experiment", "tuned"]
    assert "create_model('local-dir:output/tuned/model', pretrained=True)" in command("finetune", *source, *flags)
    told = command("push", "output/tuned", "somebody/flowers", "--license", "mit", "--dry-run")
    assert "dry run, nothing is written" in told
    assert "model.safetensors" in told
    assert "digits/mixmo_wrn16_2_m2" in command("recipes", "digits")
    assert "24 runs" in command("compare", "--suite", "digits_smoke", "--dry-run")
