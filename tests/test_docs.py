"""The snippets that people copy run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
