"""--bn-momentum and --bn-eps, in training, in what is saved and in the evaluation."""

import pytest
import timm
from input_runs import NETS
from torch import nn

from timm_mix.train.errors import UsageError

WRN = ["--model", "wrn16_2", "--model-kwargs", "depth=10", "--img-size", "32"]


def test_a_run_remembers_them(scripts):
    scripts.train("run", *WRN, "--bn-momentum", "0.03", "--bn-eps", "0.5")
    model = timm.create_model(f"local-dir:{scripts.out}/run/model", pretrained=True)
    assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.03, 0.5)}
    figures = [scripts.validate(source)["figures"] for source in ("run/model", "run/checkpoints/last.pt")]
    assert figures[0] == figures[1]


def test_a_network_of_timm_that_would_forget_eps_takes_momentum_alone(scripts):
    scripts.train("run", *NETS["resnet"], "--img-size", "32", "--bn-momentum", "0.03")
    with pytest.raises(UsageError, match="bn_eps of resnet18 would be lost"):
        scripts.train("other", *NETS["resnet"], "--img-size", "32", "--bn-eps", "0.5")


def test_a_network_without_batch_norm_says_so(scripts):
    with pytest.raises(UsageError, match="are for networks with batch norm, VisionTransformer has none"):
        scripts.train("run", *NETS["vit"], "--img-size", "32", "--bn-momentum", "0.03")
