"""What a folder of weights must be before it ships; the same for those in model_cards/weights and for fresh ones."""

import json
import math
import shlex

from safetensors.torch import load_file

from timm_mix.card import file_hash, make_card
from timm_mix.train.settings.config import load_recipe

FILES = {"README.md", "config.json", "model.safetensors", "recipe.yaml", "results.json"}
LARGEST = 6 * 10**6  # bytes


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def assert_complete(folder):
    """Whole, small, float16, with the hash, the recipe and the card that belong to it."""
    results = results_of(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(path.stat().st_size <= LARGEST for path in folder.iterdir())
    assert results["name"] == folder.name
    weights = results["weights"]
    assert weights["sha256"] == file_hash(folder / "model.safetensors")
    assert weights["bytes"] == (folder / "model.safetensors").stat().st_size
    state = load_file(folder / "model.safetensors")
    assert {str(t.dtype) for t in state.values()} == {"torch.float16", "torch.int64"}
    assert (folder / "README.md").read_text() == str(make_card(folder))
    assert load_recipe(folder / "recipe.yaml")["seed"] == results["training"]["seed"]
    assert {"hardware", "versions", "command", "epochs"} <= set(results["training"])
    assert results["license"]
    assert results["reproduce"]["top1"] == results["figures"][results["prediction"]]["top1"]
    assert all(math.isfinite(row[key]) for row in results["figures"].values() for key in ("top1", "nll", "ece"))


def quoted_flags(results, data_dir=None):
    """validate.py's flags in the line that results.json quotes, without --output."""
    words = shlex.split(results["reproduce"]["command"])
    assert words[:2] == ["python", "train_scripts/validate.py"]
    assert words[-2] == "--output"
    return [str(data_dir) if word == "DATA" else word for word in words[2:-2]]
