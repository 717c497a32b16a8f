"""The weights in model_cards/weights: complete, small, listed, and as good as they say."""

import pytest
import timm
from accelerate.state import AcceleratorState, GradientState
from support.weight_folders import assert_complete, quoted_flags, results_of

from timm_mix.commands import validate
from timm_mix.lab.release.weights_table import weights_table
from timm_mix.models.weights.shipped import TAGS, shipped_folder
from timm_mix.train.evaluate import run as evaluation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning"),
]


def test_weights_that_ship_are_complete_and_small():
    folders = [path for path in shipped_folder().iterdir() if path.is_dir()]
    for folder in folders:
        assert_complete(folder)
        arch, _, tag = folder.name.partition(".")
        assert tag in TAGS[arch]
        assert timm.models.is_model_pretrained(folder.name)
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 40 * 10**6


def test_the_table_of_weights_that_ship_is_that_of_their_results():
    text = (shipped_folder() / "README.md").read_text()
    table = weights_table(shipped_folder())
    assert text.endswith(f"\n\n{table}")
    rows = table.splitlines()[2:]
    assert len(rows) == sum(path.is_dir() for path in shipped_folder().iterdir())
    name = "mixmo_wrn16_2_m2.digits"
    results = results_of(shipped_folder() / name)
    (row,) = [row for row in rows if row.startswith(f"| [{name}]({name}) | mixmo | digits | ")]
    assert f"| {results['reproduce']['top1']:.2f} |" in row


def test_weights_that_ship_for_digits_give_their_quoted_top1(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "THROUGHPUT_SECONDS", 0.0)
    for folder in shipped_folder().glob("*digits"):
        results = results_of(folder)
        flags = quoted_flags(results)
        assert flags[:2] == ["--model", folder.name]
        validate.main([*flags, "--workers", "0", "--output", str(tmp_path / folder.name)])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        again = results_of(tmp_path / folder.name)
        assert again["figures"][results["prediction"]]["top1"] == results["reproduce"]["top1"]
