"""Pushed, and loaded again by one line: every family, both protocols, with and without timm_mix."""

import json
import subprocess
import venv
from pathlib import Path

import pytest
import timm
import torch
from hub_push_helpers import assert_holds, push, pushes
from huggingface_hub import ModelCard
from support.hub_clients import client_environment, run_client
from support.pushing import NEEDS_PUSH

from timm_mix.hub import save_pretrained

pytestmark = [NEEDS_PUSH, pytest.mark.slow]

# one name of every module that registers models: the smallest one, and what makes it small for the quick test
FAMILIES = {
    "densenet_cifar": ("densenet161_cifar", {"growth_rate": 4, "block_config": (2, 2, 2)}),
    "efficientnet_published": ("efficientnetb0_cifar", {"channels": (8,) * 7, "head_width": 16}),
    "mixmo": ("mixmo", {"backbone": "test_resnet", "members": 3}),
    "narrow": ("narrow_efficientnet", {"width": 0.25}),
    "preact_resnet_cifar": ("preact_resnet18", {"layers": (1, 1, 1, 1)}),
    "pyramidnet_cifar": ("pyramidnet164", {"depth": 20, "alpha": 10}),
    "resnet_cifar": ("resnet110", {}),
    "resnet_e": ("resnet50e", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}),
    "resnexst": ("resnexst50_4x16d", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}),
    "se_resnet": ("se_resnet50", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}),
    "shake_shake_cifar": ("shake_resnet26_2x96d", {"depth": 8, "base_width": 4}),
    "splitnet": ("splitnet", {"backbone": "wrn16_2", "split": 2}),
    "wide_resnet_cifar": ("wrn16_2", {"depth": 10, "widen_factor": 1}),
}
# as they are registered, at their real size
REAL = {**{name: (arch, {}) for name, (arch, _) in FAMILIES.items()}, "mixmo_named": ("mixmo_wrn16_2_m2", {})}
REAL |= {"splitnet_named": ("splitnet_resnet18_s8", {}), "mixmo_swin": ("mixmo_swin_tiny_patch4_window7_224_m2", {})}
RELOAD = """
import timm, timm_mix, torch
def load(source):
    return timm.create_model(source, pretrained=True).eval()
ours, theirs = load(f"local-dir:{folder}"), load(f"hf-hub:{repo_id}")
torch.manual_seed(0)
x = torch.randn(2, *ours.pretrained_cfg["input_size"])
same = [(a == b).all().item() for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)]
with torch.no_grad():
    a, b = ours(x), theirs(x)
result = {"bits": all(same), "tensors": len(same), "logits": torch.equal(a, b), "finite": bool(a.isfinite().all())}
"""


def _save(folder, arch, settings):
    torch.manual_seed(0)
    return save_pretrained(timm.create_model(arch, num_classes=5, **settings), folder)


def _assert_round_trip(hub, client, folder, repo_id):
    first = push(client, folder, repo_id, timeout=600).ok().value
    assert first["commit_url"] == f"{hub.url}/{repo_id}/commit/{hub.repo(repo_id).head}"
    found = client.run(RELOAD, timeout=600, folder=str(folder), repo_id=repo_id).ok().value
    assert found["bits"]
    assert found["logits"]
    assert found["finite"]
    assert found["tensors"] > 5
    assert_holds(hub.repo(repo_id), folder)
    card = ModelCard(hub.repo(repo_id).files()["README.md"].decode())
    assert card.data.library_name == "timm"
    assert card.data.license == "mit"
    assert f'timm.create_model("hf-hub:{repo_id}", pretrained=True)' in card.text
    assert push(client, folder, repo_id).ok().value["commit_url"] is None
    assert pushes(hub.repo(repo_id)) == 1


def test_no_family_is_forgotten():
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {name.removeprefix("timm_mix.models.") for name in modules if name.startswith("timm_mix.")} == set(FAMILIES)


@pytest.mark.parametrize(("family", "xet"), [(family, i % 2 == 0) for i, family in enumerate(FAMILIES)])
def test_every_family_comes_back_bit_by_bit(hub, clients, tmp_path, family, xet):
    """By one protocol each, in turn; by both under the marker."""
    _assert_round_trip(hub, clients[xet], _save(tmp_path / "model", *FAMILIES[family]), f"alice/{family}")


@pytest.mark.hub_matrix
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
@pytest.mark.parametrize("family", REAL)
def test_so_does_every_family_at_its_real_size(hub, clients, tmp_path, family, xet):
    _assert_round_trip(hub, clients[xet], _save(tmp_path / "model", *REAL[family]), f"alice/{family}")


def test_folded_networks_load_without_timm_mix(hub, clients, ensemble_folder, tmp_path):
    """Over timm's own backbone plain timm is enough; over ours the one file in the repository teaches it."""
    torch.manual_seed(1)
    ours = timm.create_model("mixmo_wrn16_2_m2", depth=10, widen_factor=1, num_classes=3)
    folders = {"alice/timms": ensemble_folder, "alice/ours": save_pretrained(ours, tmp_path / "ours")}
    for repo_id, folder in folders.items():
        result = push(clients[False], folder, repo_id, fold=True).ok().value
        assert result["folded"]["repo_id"] == f"{repo_id}-folded"
        assert ModelCard(hub.repo(f"{repo_id}-folded").files()["README.md"].decode()).data.base_model == repo_id
    assert "pretrained=True" in result["folded"]["reload"]
    x = {repo_id: torch.randn(2, 3, 32, 32).tolist() for repo_id in folders}
    (tmp_path / "x.json").write_text(json.dumps(x))
    code = f"""
import sys
sys.modules["timm_mix"] = None
import json, timm, torch
from huggingface_hub import hf_hub_download
x = json.load(open("{tmp_path}/x.json"))
logits, errors = {{}}, {{}}
def load(name):
    return timm.create_model(f"hf-hub:{{name}}", pretrained=True).eval()
with torch.no_grad():
    logits["alice/timms"] = load("alice/timms-folded")(torch.tensor(x["alice/timms"])).tolist()
    for name in ("alice/timms", "alice/ours", "alice/ours-folded"):
        try:
            load(name)
        except RuntimeError as error:
            errors[name] = str(error)
    file = hf_hub_download("alice/ours-folded", "wide_resnet_cifar.py", local_dir="{tmp_path}/one-file")
    sys.path.insert(0, "{tmp_path}/one-file")
    import wide_resnet_cifar
    logits["alice/ours"] = load("alice/ours-folded")(torch.tensor(x["alice/ours"])).tolist()
json.dump([logits, errors], open("{tmp_path}/out.json", "w"))
"""
    done = run_client(code, hub, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr[-2000:]
    logits, errors = json.loads((tmp_path / "out.json").read_text())
    for repo_id, folder in folders.items():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            wanted = model(torch.tensor(x[repo_id]))
        torch.testing.assert_close(torch.tensor(logits[repo_id]), wanted, rtol=1e-4, atol=1e-5)
    assert set(errors) == {"alice/timms", "alice/ours", "alice/ours-folded"}
    for repo_id, error in errors.items():  # plain timm's words, which the card therefore has to explain
        assert "Unknown model" in error
        assert "import timm_mix" in hub.repo(repo_id).files()["README.md"].decode()


@pytest.mark.hub_matrix
def test_an_environment_with_timm_and_without_timm_mix_loads_a_folded_network(hub, clients, ensemble_folder, tmp_path):
    """A new virtual environment that sees the packages of this one, but for timm_mix, which no path leads to."""
    push(clients[True], ensemble_folder, "alice/ensemble", fold=True).ok()
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    [packages] = {str(Path(module.__file__).parents[1]) for module in (timm, torch)}
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")  # a .pth file there, as of an editable timm_mix, is not read
    code = """
import importlib.util, json, sys
assert importlib.util.find_spec("timm_mix") is None
import timm, torch
model = timm.create_model("hf-hub:alice/ensemble-folded", pretrained=True).eval()
torch.manual_seed(0)
with torch.no_grad():
    print(json.dumps(model(torch.randn(2, 3, 32, 32)).tolist()))
"""
    environment = client_environment(hub, token=None, xet=True, home=tmp_path / "home")
    environment["PYTHONPATH"] = ""
    done = subprocess.run([python, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = timm.create_model(f"local-dir:{ensemble_folder}", pretrained=True).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted, rtol=1e-4, atol=1e-5)
