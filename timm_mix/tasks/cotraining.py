"""Co-training of the parts of a SplitNet (Zhao et al., arXiv:2011.14660), as a timm training task."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.task import DistillationTeacher
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.checks import check_choice, check_not_negative, check_positive
from timm_mix.functional.plan import MixPlan, apply_mix, mix_targets
from timm_mix.functional.probabilities import log_probabilities
from timm_mix.functional.splitnet import DIVERGENCES, cotraining_weight, plan_shared_mixup
from timm_mix.models import reduce_members
from timm_mix.tasks._base import MemberTask
from timm_mix.tasks.facts import Example, Facts, Method
from timm_mix.tasks.losses import Labels
from timm_mix.tasks.member_parallel import check_member_group, gather_members

__all__ = ["CoTrainingTask"]

METHOD = Method(
    title="SplitNet with co-training",
    tag="splitnet",
    about="One wide network, divided into narrow ones that together cost about as much. Each learns from its own "
    "views of the images and from the other parts; their logits are averaged.",
    card="splitnet.md",
    arxiv="2011.14660",
    bibtex="""@article{zhao2020divide,
  title   = {Towards Better Accuracy-efficiency Trade-offs: Divide and Co-training},
  author  = {Zhao, Shuai and Zhou, Liguang and Wang, Wenxiao and Cai, Deng and Lam, Tin Lun and Xu, Yangsheng},
  journal = {arXiv preprint arXiv:2011.14660},
  year    = {2020},
}""",
    source="splitnet",
)


class CoTrainingTask(MemberTask):
    """Every part learns from the labels, and from the other parts: sum_i CE_i + w * divergence (paper, eq. 4 and 5).

    Made for SplitNet; any model with members will do. From off_epoch on views and labels are not mixed; the parts learn
    from each other, and from a teacher, as before.

    Args:
        weight: w of the divergence; 0 trains the parts separately and computes none.
        divergence: `js` (Jensen-Shannon, as published) or `kl` (each part learns from each of the others).
        warmup_epochs: over which w grows (published: 40 of 300 epochs on CIFAR); needs steps_per_epoch.
        mixup: alpha of mixup, 0 for none (published: .2). One lam and one pairing per batch hold for all parts, while
            each part mixes its own views.
        teacher: a network that predicts the classes already, such as the undivided one; every part learns its
            probabilities for the part's own view as well (timm's LogitDistillationTask, its loss and its handling of
            another normalisation). A copy of it is taken, which is in no state.
        mean, std: the normalisation of the images that the task gets, per channel; None: as the model's cfg says. Only
            the teacher needs to know.
        teacher_weight: of that loss, summed over the parts as the cross-entropy is.
        temperature: of both softmaxes in it.
        member_group: the processes that hold one part each (see tasks/member_parallel.py); None: all parts are here.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input, target [B] or [B, K]) with input [B, S, C, H, W], one view per part, or [B, C, H, W], one view
        for all -> dict with
        loss: scalar.   output: [B, K], the ensemble.   ce: sum of the parts' losses, cot: the divergence (not there
        with weight 0); both detached.
    Raises:
        ValueError: weight, warmup_epochs, mixup or teacher_weight < 0, temperature <= 0, an unknown divergence, a
            warm-up without steps_per_epoch, off_epoch without mixup, a model without members, a teacher of other
            classes or beside a member_group, a target of another shape.

    >>> import timm
    >>> model = timm.create_model("splitnet_wrn16_2_s2", num_classes=5, depth=10)
    >>> task = CoTrainingTask(model, num_classes=5, mixup=0.2)
    >>> views = torch.rand(4, 2, 3, 16, 16)  # one for each part
    >>> sorted(task(views, torch.tensor([0, 1, 2, 3])))
    ['ce', 'cot', 'loss', 'output']
    """

    facts = Facts(
        METHOD,
        member_views=True,
        member_parallel=True,
        ends_mixing=True,
        example=Example("splitnet", {"split": 2, "divide": False}, {"mixup": 0.2}),
    )

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        weight: float = 0.5,
        divergence: str = "js",
        warmup_epochs: float = 0.0,
        mixup: float = 0.0,
        teacher: nn.Module | None = None,
        teacher_weight: float = 1.0,
        temperature: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        member_group: Any = None,
        **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        if member_group is not None:
            check_member_group(unwrap_model(model), member_group)
        self.member_group = member_group
        numbers = {"weight": weight, "warmup_epochs": warmup_epochs, "mixup": mixup, "teacher_weight": teacher_weight}
        for name, value in numbers.items():
            check_not_negative(name, value)
        check_positive("temperature", temperature)
        check_choice("divergence", divergence, DIVERGENCES)
        if warmup_epochs and self.steps_per_epoch is None:
            raise ValueError(f"warmup_epochs={warmup_epochs} needs steps_per_epoch, the number of batches in an epoch")
        if self.off_epoch is not None and not mixup:
            raise ValueError(
                f"off_epoch={self.off_epoch} ends the mixup of the views, which is 0: set mixup, or drop it"
            )
        self.weight = weight
        self.divergence = divergence
        self.warmup_epochs = warmup_epochs
        self.mixup = mixup
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.normalisation = {"mean": mean, "std": std}
        # in a tuple, so that it is no part of this module: not in its state, not trained, not wrapped
        self._teacher = () if teacher is None else (self._checked_teacher(teacher),)

    def _checked_teacher(self, teacher: nn.Module) -> DistillationTeacher:
        if self.member_group is not None:
            raise ValueError("a teacher sees the views of all parts, which a member_group divides; drop one of the two")
        classes = getattr(teacher, "num_classes", None)
        if classes != self.num_classes:
            raise ValueError(
                f"the teacher must predict the {self.num_classes} classes that the parts learn, it predicts {classes}: "
                "fine-tune it first"
            )
        own = copy.deepcopy(unwrap_model(teacher)).to(self.device)
        return DistillationTeacher(own, device=self.device).requires_grad_(False)

    def draw(self, input: Tensor) -> MixPlan | None:
        """All chance of one step, for a batch like `input`; None without mixup, and from off_epoch on."""
        return plan_shared_mixup(input.shape[0], self.mixup, rng=self.rng) if self.mixup and self.mixes else None

    def forward(self, input: Tensor, target: Tensor, plan: MixPlan | None = None) -> dict[str, Tensor]:
        """One step; `plan` fixes its chance (drawn when it is None)."""
        target = self._checked_target(input, target)
        plan = self.draw(input) if plan is None else plan
        if plan is not None:
            input = apply_mix(input.flatten(1, -3), plan).reshape(input.shape)  # the views of a sample as its channels
            labels = self.label_loss.labels(target)
            target = labels._replace(rows=mix_targets(labels.rows, plan, self.num_classes))
        logits = self.trainable_module(input, return_members=True)
        if self.member_group is not None:
            logits = gather_members(logits, self.member_group)
        losses = self.losses(logits, target, self.epoch)
        for teacher in self._teacher:
            taught = self._taught(teacher, input, logits)
            losses = {**losses, "loss": losses["loss"] + self.teacher_weight * taught, "teacher": taught.detach()}
        self.step += 1
        return {**losses, "output": reduce_members(logits, unwrap_model(self.trainable_module).ensemble)}

    def _taught(self, teacher: DistillationTeacher, input: Tensor, logits: Tensor) -> Tensor:
        """The parts' divergence from the teacher on their own views: sum_i T^2 KL(teacher | part i), batch mean.

        Under a sigmoid's criterion that of every class, averaged.
        """
        mean, std = (self._normalisation(key, input) for key in ("mean", "std"))
        views = input if input.ndim == 5 else input[:, None]
        with torch.no_grad():
            wanted = teacher(teacher.normalize_input(views.flatten(0, 1), mean, std)).float()
        sigmoid = self.label_loss.sigmoid
        wanted = wanted.unflatten(0, views.shape[:2]).expand_as(logits)
        said = [log_probabilities(z.float() / self.temperature, sigmoid=sigmoid) for z in (logits, wanted)]
        divergence = nn.functional.kl_div(*said, reduction="none", log_target=True).sum((1, 3)).mean()
        return self.label_loss.beside(divergence * self.temperature**2, len(logits))

    def _normalisation(self, key: str, input: Tensor) -> Tensor:
        """[1, C, 1, 1]; of colours, where the images are grey, their mean."""
        given = self.normalisation[key] or unwrap_model(self.trainable_module).pretrained_cfg[key]
        values = torch.tensor(given, device=input.device, dtype=torch.float32)
        if len(values) not in (1, input.shape[-3]):
            values = values.mean(0, keepdim=True)
        return values.view(1, -1, 1, 1)

    def losses(self, logits: Tensor, target: Tensor | Labels, epoch: int) -> dict[str, Tensor]:
        """The loss of members' logits, and its terms for logging.

        Where the logits of some members are constants, the gradient of the others is that of the whole loss.

        Shapes: logits [B, S, K].   target [B] int64, [B, K] or Labels.
        """
        ce = torch.stack([self.label_loss(part, target) for part in logits.unbind(1)]).sum()
        if not self.weight:
            return {"loss": ce, "ce": ce.detach()}
        cot = DIVERGENCES[self.divergence](logits, sigmoid=self.label_loss.sigmoid)
        cot = self.label_loss.beside(cot, len(logits))
        loss = ce + cotraining_weight(epoch, self.weight, self.warmup_epochs) * cot
        return {"loss": loss, "ce": ce.detach(), "cot": cot.detach()}
