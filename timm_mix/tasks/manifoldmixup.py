"""Manifold Mixup training (Verma et al., ICML 2019, arXiv:1806.05236) of any timm model, as a timm training task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.plan import MixPlan, apply_mix, mix_targets, plan_mixup
from timm_mix.tasks._base import MixingTask
from timm_mix.tasks.facts import Facts, Method

__all__ = ["ManifoldMixupTask"]

METHOD = Method(
    title="Manifold Mixup",
    tag="manifold-mixup",
    about="In training the features of two images were mixed at a stage drawn for each batch. What is left is the "
    "plain network.",
    arxiv="1806.05236",
)


class ManifoldMixupTask(MixingTask):
    """One stage of the network, drawn per batch, mixes its features with those of a partner; so are the labels.

    h = lam h + (1 - lam) h_partner at the output of the drawn stage, or at the images (stage 0), with one
    lam ~ Beta(alpha, alpha) and one shuffle per batch (paper, sec. 2). From off_epoch on it is plain training.

    Args:
        model: a timm model with feature_info, whose stages are modules.
        alpha: Beta parameter (published: 2 on CIFAR).
        stages: to draw from; 0 is the image, i the i-th feature level; None: the image and all levels but the last.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with loss: scalar.   output: [B, K], of the mix.
    Raises:
        ValueError: a model without stages, a stage that it does not have, alpha <= 0, a target of another shape.

    >>> import timm
    >>> task = ManifoldMixupTask(timm.create_model("test_resnet", num_classes=5), num_classes=5)
    >>> task.stages
    (0, 1, 2, 3, 4)
    >>> task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["output"].shape
    torch.Size([4, 5])
    """

    facts = Facts(METHOD, ends_mixing=True)

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        alpha: float = 2.0,
        stages: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        names = _stage_modules(unwrap_model(model))
        _check_runs_once(model)
        self.stages = tuple(range(len(names))) if stages is None else tuple(stages)
        if not self.stages or any(s not in range(len(names) + 1) for s in self.stages):
            raise ValueError(f"stages must be some of 0 .. {len(names)}, got {self.stages}")
        plan_mixup(1, rng=np.random.default_rng(0), alpha=alpha)  # a wrong setting is an error now
        self.alpha = alpha
        self._site = _Site()
        self._modules_mixed = {i: name for i, name in enumerate(names, start=1) if i in self.stages}

    def draw(self, input: Tensor) -> tuple[int, MixPlan]:
        """The stage and the mix of one step, for a batch like `input`."""
        stage = int(self.rng.choice(self.stages))
        lam = float(self.rng.beta(self.alpha, self.alpha))
        batch = input.shape[0]
        return stage, MixPlan(self.rng.permutation(batch), np.full(batch, lam))

    def forward(self, input: Tensor, target: Tensor, plan: tuple[int, MixPlan] | None = None) -> dict[str, Tensor]:
        """One step; `plan` fixes its chance (drawn when it is None)."""
        if input.ndim != 4:
            raise ValueError(f"input must be a batch of images [B, C, H, W], got {list(input.shape)}")
        target = self._checked_target(input, target)
        if plan is None and not self.mixes:
            logits = self.trainable_module(input)
            self.step += 1
            return {"loss": self.label_loss(logits, target), "output": logits}
        stage, mix = self.draw(input) if plan is None else plan
        with self._mixing(stage, mix, input.device):
            logits = self.trainable_module(input if stage else apply_mix(input, mix))
            mixed = self._site.mixed or stage == 0
        if not mixed:
            raise ValueError(f"stage {stage} of the network did not run as a module; leave it out of stages")
        labels = self.label_loss.labels(target)
        loss = self.label_loss(logits, labels._replace(rows=mix_targets(labels.rows, mix, self.num_classes)))
        self.step += 1
        return {"loss": loss, "output": logits}

    @contextmanager
    def _mixing(self, stage: int, mix: MixPlan, device: torch.device) -> Iterator[None]:
        """The hooks of all stages are on the network, as a compiled graph must have them all; afterwards none is."""
        model = unwrap_model(self.get_trainable_module())
        _check_runs_once(model)
        hooks = [
            model.get_submodule(name).register_forward_hook(_mixing_hook(self._site, i))
            for i, name in self._modules_mixed.items()
        ]
        partner = torch.from_numpy(mix.partner).to(device, non_blocking=True)
        lam = torch.tensor(mix.lam[0], dtype=torch.float32).to(device, non_blocking=True)
        self._site.open(stage, partner, lam)
        try:
            yield
        finally:
            self._site.close()
            for hook in hooks:
                hook.remove()


@dataclass
class _Site:
    """Where the hooks look whether it is their turn; stage 0 is nobody's."""

    stage: int = 0
    partner: Tensor | None = None
    lam: Tensor | None = None
    mixed: bool = False  # whether a hook had its turn

    def open(self, stage: int, partner: Tensor, lam: Tensor) -> None:
        self.stage, self.partner, self.lam, self.mixed = stage, partner, lam, False

    def close(self) -> None:
        self.stage, self.partner, self.lam = 0, None, None


def _mixing_hook(site: _Site, stage: int) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if site.stage != stage:
            return output
        assert site.partner is not None
        assert site.lam is not None
        site.mixed = True
        return torch.lerp(output[site.partner], output, site.lam.to(output.dtype))

    return hook


def _check_runs_once(model: nn.Module) -> None:
    if any(getattr(module, "grad_checkpointing", False) for module in model.modules()):
        raise ValueError("ManifoldMixupTask mixes inside the network, which gradient checkpointing runs twice: drop it")


def _stage_modules(model: nn.Module) -> list[str]:
    """Names of the modules behind the feature levels."""
    info = getattr(model, "feature_info", None) or []
    names = [level.get("module", "") for level in info]
    known = dict(model.named_modules())
    if not names or any(name not in known for name in names):
        raise ValueError(f"ManifoldMixupTask needs a timm model whose stages are modules, got {type(model).__name__}")
    return names
