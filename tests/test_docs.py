"""The snippets that people copy run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timm_mix.mixers import MIXERS

ROOT = Path(__file__).resolve().parents[1]


def _snippets(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("card", sorted((ROOT / "model_cards" / "methods").glob("*.md")), ids=lambda p: p.name)
def test_snippets_of_the_method_cards_run_one_after_the_other(card):
    space = {}
    snippets = _snippets(card)
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, card.name, "exec"), space)


def test_first_snippet_of_the_readme_runs():
    space = {}
    exec(compile(_snippets("README.md")[0], "README.md", "exec"), space)
    assert space["model"].num_members == 3


def test_the_mixer_of_contributing_runs():
    (snippet,), space = _snippets("CONTRIBUTING.md"), {"__name__": "contributing"}
    with MIXERS.scoped():
        exec(compile(snippet, "CONTRIBUTING.md", "exec"), space)
        assert "corner" in MIXERS
    assert space["images"].shape == (6, 3, 32, 32)
    assert space["labels"].sum(1).tolist() == pytest.approx([1] * 6)
    assert space["mixer"].plan(2, (32, 32)).lam.tolist() == [1 - 1 / 16] * 2
    x = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 32, 32)
    mixed, _ = space["mixer"](x, torch.arange(6))
    assert torch.equal(mixed[:, :, 8:], x[:, :, 8:])  # below the corner everything is one's own
    assert torch.equal(mixed[:, :, :, 8:], x[:, :, :, 8:])
    corner = mixed[:, 0, :8, :8].flatten(1)
    assert torch.equal(corner, corner[:, :1].expand(-1, 64))
    assert sorted(corner[:, 0].tolist()) == list(range(6))


def test_contributing_is_short_and_its_files_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 100
    named = re.findall(r"`((?:timm_mix|tests|model_cards)/[\w/.]+)`", text)
    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"(?:train_scripts|model_cards)/[\w/.]+\.(?:py|yaml|md)", (ROOT / "README.md").read_text())
    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_names_that_the_readme_writes_are_there_after_import_timm_mix_alone():
    named = sorted(set(re.findall(r"(?<!-m )\btimm_mix\.[a-z_.]*[a-z]\b", (ROOT / "README.md").read_text())))
    assert {"timm_mix.hub.push_to_hub", "timm_mix.create_task"} <= set(named)
    code = f"import timm_mix\nfor name in {named}: eval(name)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
