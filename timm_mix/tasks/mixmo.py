"""MixMo training (Rame, Sun, Cord, ICCV 2021, arXiv:2103.06132), as a timm training task."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.checks import check_positive, check_probability
from timm_mix.functional.mixmo import (
    MixMoPlan,
    binary_probability,
    member_masks,
    member_weights,
    plan_mixmo,
    repetition_share,
)
from timm_mix.functional.msda import MsdaPlan, kept_labels, kept_pixels, plan_msda
from timm_mix.models import reduce_members
from timm_mix.tasks._base import MemberTask
from timm_mix.tasks.facts import Example, Facts, Method

__all__ = ["MixMoTask"]

METHOD = Method(
    title="MixMo",
    tag="mixmo",
    about="Each member has its own first convolution and its own head, the rest is one shared network. In training "
    "it looks at several mixed images at once, afterwards all members look at the same one and are averaged.",
    card="mixmo.md",
    arxiv="2103.06132",
    bibtex=r"""@inproceedings{rame2021mixmo,
  title     = {{MixMo}: Mixing Multiple Inputs for Multiple Outputs via Deep Subnetworks},
  author    = {Ram{\'e}, Alexandre and Sun, R{\'e}my and Cord, Matthieu},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021},
  eprint    = {2103.06132},
  archivePrefix = {arXiv},
}""",
    source="mixmo",
)


class MixMoTask(MemberTask):
    """Each member predicts its own image of a mixed input (paper, sec. 3).

    One step draws M shuffles of the batch, a mixing block, ratios per sample and the members' roles, then sums the
    members' losses with the weights w_r of their ratios. From off_epoch on all members see the sample's own image,
    without masks, as at test time, and the loss is the sum of their losses.

    Args:
        block: the mixing block: `linear` for Linear-MixMo, or another of functional.blocks such as `cut`.
        prob: probability per batch of `block` rather than the linear one; fades to 0 over the last twelfth of training.
        alpha: ratios ~ Dirichlet(alpha, ..., alpha).
        r: weight exponent; 1 weights by the ratio, math.inf weights alike; the paper's plateau is 3 to 6.
        repetition: rho, the share of the batch in which all members see the same image.
        repetition_end: where rho goes in a straight line over the first repetition_until of training; None,
            or no total_steps, keeps it. Members that start from one pretrained core need a high rho.
        repetition_until: share of training, in (0, 1].
        mimo: MIMO (Havasi et al., ICLR 2021): linear block, equal ratios, equal weights.
        partition: with more than two members, every place belongs to exactly one of them.
        same_ratio: one draw of the ratios for the whole batch.
        msda: `cutmix` or `mixup` of each member's image in pixels, before it is encoded; None for neither.
        msda_alpha: their Beta parameter.
        msda_prob: probability per member and sample.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with
        loss: scalar.   output: [B, K], the ensemble.   ce: the members' unweighted mean loss, detached.
    Raises:
        ValueError: a setting outside its range, a model that is no MixMo, a target of another shape.

    >>> import timm
    >>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5, depth=10)
    >>> task = MixMoTask(model, num_classes=5, block="cut", r=3.0)
    >>> images, target = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    >>> task.draw(images).shape, task(images, target)["output"].shape  # the masks live behind the first convolution
    ((16, 16, 16), torch.Size([4, 5]))
    """

    weighs_samples = True
    facts = Facts(METHOD, ends_mixing=True, example=Example("mixmo", {"members": 2}, {"block": "cut"}))

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        block: str = "cut",
        prob: float = 0.5,
        alpha: float = 2.0,
        r: float = 3.0,
        repetition: float = 0.0,
        repetition_end: float | None = None,
        repetition_until: float = 1.0,
        mimo: bool = False,
        partition: bool = False,
        same_ratio: bool = False,
        msda: str | None = None,
        msda_alpha: float = 1.0,
        msda_prob: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.settings: dict[str, Any] = {
            "block": "linear" if mimo else block,
            "alpha": alpha,
            "equal": mimo,
            "partition": partition and not mimo,
            "same_ratio": same_ratio,
        }
        self.msda = None if msda is None else {"method": msda, "alpha": msda_alpha, "prob": msda_prob}
        self.prob = prob
        self.repetition = (repetition, repetition_end, repetition_until)
        self.r = 1.0 if mimo else r
        self._stem_shapes: dict[tuple[int, int], tuple[int, int, int]] = {}
        # a wrong setting is an error now, not in the first step
        plan_mixmo(1, 2, (1, 1, 1), rng=np.random.default_rng(0), prob=prob, repetition=repetition, **self.settings)
        if repetition_end is not None:
            check_probability("repetition_end", repetition_end)
        check_probability("repetition_until", repetition_until)
        check_positive("repetition_until", repetition_until)
        if self.msda is not None:
            plan_msda(1, 2, (1, 1), rng=np.random.default_rng(0), **self.msda)
        member_weights(torch.ones(1, 1), self.r)

    def _check_model(self, model: nn.Module, num_classes: int) -> None:
        super()._check_model(model, num_classes)
        if not hasattr(model, "stem_shape"):
            raise ValueError(f"MixMoTask needs a mixmo_* model, got {type(model).__name__}")

    def draw(self, input: Tensor) -> MixMoPlan:
        """All chance of one step, for a batch like `input`."""
        model = unwrap_model(self.trainable_module)
        size = (input.shape[-2], input.shape[-1])
        if size not in self._stem_shapes:
            self._stem_shapes[size] = model.stem_shape(size)
        done = 0.0 if self.total_steps is None else self.step / self.total_steps
        chance = {
            "prob": binary_probability(self.progress, self.prob),
            "repetition": repetition_share(done, *self.repetition),
        }
        return plan_mixmo(
            input.shape[0], model.num_members, self._stem_shapes[size], rng=self.rng, **chance, **self.settings
        )

    def draw_msda(self, input: Tensor) -> MsdaPlan | None:
        """The chance of the mixed samples inside, None without them."""
        if self.msda is None:
            return None
        members = unwrap_model(self.trainable_module).num_members
        return plan_msda(input.shape[0], members, (input.shape[-2], input.shape[-1]), rng=self.rng, **self.msda)

    def forward(
        self, input: Tensor, target: Tensor, plan: MixMoPlan | None = None, msda: MsdaPlan | None = None
    ) -> dict[str, Tensor]:
        """One step; `plan` and `msda` fix its chance (drawn when they are None)."""
        if input.ndim != 4:
            raise ValueError(f"input must be a batch of images [B, C, H, W], got {list(input.shape)}")
        target = self._checked_target(input, target)
        if plan is None and not self.mixes:
            logits = self.trainable_module(input, return_members=True)
            losses = self.label_loss.each(logits, target[:, None].expand(-1, logits.shape[1], *target.shape[1:]))
            return self._result(logits, losses, losses.sum(1).mean())
        plan = self.draw(input) if plan is None else plan
        msda = self.draw_msda(input) if msda is None else msda
        images = torch.from_numpy(plan.images).to(input.device, non_blocking=True)
        members = input[images.T].transpose(0, 1)  # [B, M, C, H, W], every member contiguous in memory
        masks, ratios = member_masks(plan, input.device)
        if msda is None:
            logits = self.trainable_module(members, masks=masks, return_members=True)
            losses = self.label_loss.each(logits, target[images])
        else:
            partners = torch.from_numpy(msda.partners).to(input.device, non_blocking=True)
            keep, lam = kept_labels(kept_pixels(msda, input.device), masks)
            members = torch.lerp(input[partners.T].transpose(0, 1), members, keep.to(input.dtype))
            logits = self.trainable_module(members, masks=masks, return_members=True)
            labels = self.label_loss.labels(target)
            rows = torch.lerp(labels.rows[partners], labels.rows[images], lam[..., None].to(labels.rows.dtype))
            losses = self.label_loss.each(logits, labels._replace(rows=rows))
        return self._result(logits, losses, (member_weights(ratios.to(losses.dtype), self.r) * losses).sum(1).mean())

    def _result(self, logits: Tensor, losses: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """The end of a step, with the members' logits [B, M, K] and losses [B, M]."""
        self.step += 1
        ensemble = unwrap_model(self.trainable_module).ensemble
        return {"loss": loss, "output": reduce_members(logits, ensemble), "ce": losses.detach().mean()}
