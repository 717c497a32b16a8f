"""Pictures of an evaluation at their edges; what they usually show is drawn by the tests of validate.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from timm_mix.metrics import calibration_bins, risk_coverage
from timm_mix.train.evaluate.figures import (
    _interval,
    plot_corruptions,
    plot_members,
    plot_reliability,
    plot_risk_coverage,
)

# older releases of matplotlib speak an older dialect of pyparsing
pytestmark = pytest.mark.filterwarnings("ignore:'.*' deprecated - use '.*':DeprecationWarning")


def _ink(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).std()


def test_intervals_are_wilsons():
    """Ends for 5 and 10 right of 10, from the formula of Wilson, 1927: 0.2366 .. 0.7634 and 0.7225 .. 1."""
    below, above = _interval(np.array([0.5, 1.0]), np.array([10.0, 10.0]))
    assert below == pytest.approx([0.5 - 0.2366, 1 - 0.7225], abs=1e-4)
    assert above == pytest.approx([0.7634 - 0.5, 0], abs=1e-4)


def test_one_bin_of_right_predictions_is_drawn(tmp_path):
    bins = calibration_bins(torch.ones(3), torch.ones(3))
    plot_reliability(tmp_path / "p.png", {"as it is": (bins, 0.0)}, "net")
    assert _ink(tmp_path / "p.png") > 10


def test_a_predictor_without_an_error_has_a_flat_curve(tmp_path):
    curve = risk_coverage(torch.rand(2), torch.ones(2))
    plot_risk_coverage(tmp_path / "p.png", {"model": curve}, "model", "net")
    assert _ink(tmp_path / "p.png") > 10


@pytest.mark.parametrize("classes", [2, 13, 60])
def test_any_number_of_classes_is_drawn(classes, tmp_path):
    counts, names = torch.eye(classes), [f"class {k}" for k in range(classes)]
    plot_members(tmp_path / "p.png", ["model"], torch.ones(1, 1), counts, names, "net")
    assert _ink(tmp_path / "p.png") > 10


def test_one_family_at_zero_accuracy_is_drawn(tmp_path):
    plot_corruptions(tmp_path / "p.png", {"jpeg": {"model": [0.0] * 5}}, {"model": 0.0}, "model", "net")
    assert _ink(tmp_path / "p.png") > 10
