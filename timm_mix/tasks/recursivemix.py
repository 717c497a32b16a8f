"""RecursiveMix training (Yang et al., NeurIPS 2022, arXiv:2203.06844) of any timm model, as a timm training task."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.checks import check_choice, check_not_negative
from timm_mix.functional.recursivemix import (
    RecursiveMixPlan,
    paste_history,
    plan_recursivemix,
    recursive_targets,
    region_consistency,
)
from timm_mix.models import prefix_matcher
from timm_mix.tasks._base import MixingTask, check_unwrapped, names_without_decay
from timm_mix.tasks._region import check_feature_map, feature_map, region_logits, region_vector
from timm_mix.tasks.facts import Facts, Method

__all__ = ["RecursiveMixTask"]

METHOD = Method(
    title="RecursiveMix",
    tag="recursivemix",
    about="In training a box of every image showed the resized input of the step before, with its label. What is "
    "left is the plain network.",
    card="recursivemix.md",
    arxiv="2203.06844",
    bibtex="""@inproceedings{yang2022recursivemix,
  title     = {RecursiveMix: Mixed Learning with History},
  author    = {Yang, Lingfeng and Li, Xiang and Zhao, Borui and Song, Renjie and Yang, Jian},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
}""",
    source="recursivemix",
)

HEADS = ("separate", "shared")


class RecursiveMixTask(MixingTask):
    """A box of every image shows the resized input of the step before, and must be recognised as what that was.

    loss = CE(logits, mixed target) + omega (1 - lam) CE(region's logits, softmax(old logits)) (paper, sec. 3).
    The region head serves training only: the evaluated and saved model is the plain one. From off_epoch on there is no
    history, so that the loss is the CE of the plain batch.

    Args:
        model: any timm model with forward_features and forward_head.
        alpha: largest area that the box aims at (published: .5).
        omega: weight of the consistency (published: .1 on CIFAR-10, .5 on ImageNet).
        resize: of the history, `nearest` or `bilinear`.
        region_head: `separate`, a linear layer of its own, or `shared`, the model's classifier.
        steps_per_epoch: the history is emptied at the start of every epoch; without it, never.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with
        loss: scalar.   output: [B, K], of the mixed images.   ce, consistency: detached, the latter without omega.
    Raises:
        ValueError: a setting outside its range, a model without features, a target of another shape.

    >>> import timm
    >>> task = RecursiveMixTask(timm.create_model("test_resnet", num_classes=5), num_classes=5, omega=0.1)
    >>> batch = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    >>> sorted(task(*batch)), sorted(task.history)  # the next call pastes from the history
    (['ce', 'consistency', 'loss', 'output'], ['images', 'logits', 'targets'])
    """

    facts = Facts(METHOD, ends_mixing=True)

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        alpha: float = 0.5,
        omega: float = 0.5,
        resize: str = "nearest",
        region_head: str = "separate",
        **kwargs: Any,
    ):
        check_unwrapped(model, type(self).__name__)
        super().__init__(model, criterion, **kwargs)
        check_choice("region_head", region_head, HEADS)
        check_not_negative("omega", omega)
        plan = plan_recursivemix((1, 1), alpha, rng=np.random.default_rng(0))  # a wrong setting is an error now
        paste_history(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), plan, resize)
        check_feature_map(model)
        self.alpha = alpha
        self.omega = omega
        self.resize = resize
        self.trainable_module = _RegionNet(model, region_head == "shared", self.num_classes).to(self.device)
        self.history: dict[str, Tensor] | None = None

    def _check_model(self, model: nn.Module, num_classes: int) -> None:
        super()._check_model(model, num_classes)
        for name in ("forward_features", "forward_head"):
            if not hasattr(model, name):
                raise ValueError(f"RecursiveMixTask needs a timm model with {name}, got {type(model).__name__}")

    def draw(self, input: Tensor) -> RecursiveMixPlan:
        """All chance of one step, for a batch like `input`."""
        return plan_recursivemix((input.shape[-2], input.shape[-1]), self.alpha, rng=self.rng)

    def forward(self, input: Tensor, target: Tensor, plan: RecursiveMixPlan | None = None) -> dict[str, Tensor]:
        """One step; `plan` fixes its chance (drawn when it is None)."""
        if input.ndim != 4:
            raise ValueError(f"input must be a batch of images [B, C, H, W], got {list(input.shape)}")
        target = self._checked_target(input, target)
        labels = self.label_loss.labels(target)
        if self._begins_epoch() or not self.mixes:
            self.history = None
        height, width = input.shape[-2:]
        whole = RecursiveMixPlan((0, height, 0, width), 1.0)
        if plan is None:
            plan = self.draw(input) if self.mixes else whole
        plan = plan if self.history is not None and plan.lam < 1 else whole
        mixed = input
        if self.history is not None and plan.lam < 1:
            mixed = paste_history(input, self.history["images"], plan, self.resize)
            labels = labels._replace(rows=recursive_targets(labels.rows, self.history["targets"], plan))
        box = torch.tensor(plan.box).to(input.device, non_blocking=True)
        logits, region = self.trainable_module(mixed, box)
        ce = self.label_loss(logits, labels)
        consistency = self._consistency(region, plan)
        if self.mixes:
            mixed = mixed.clone() if mixed is input else mixed  # a loader may write over its batch
            rows = labels.rows.clone() if labels.rows is target else labels.rows
            self.history = {"images": mixed.detach(), "targets": rows.detach(), "logits": logits.detach()}
        self.step += 1
        loss = ce + self.omega * consistency
        return {"loss": loss, "output": logits, "ce": ce.detach(), "consistency": consistency.detach()}

    def _begins_epoch(self) -> bool:
        return self.steps_per_epoch is not None and self.step % self.steps_per_epoch == 0

    def _consistency(self, region: Tensor, plan: RecursiveMixPlan) -> Tensor:
        """Zero without a box, but still a function of the region head, which DDP wants in every step."""
        if self.history is None or plan.lam == 1:
            return 0.0 * region.float().sum()
        old = self.history["logits"]
        count = min(len(region), len(old))
        sigmoid = self.label_loss.sigmoid
        term = region_consistency(region[:count], old[:count], plan, len(region), sigmoid=sigmoid)
        return self.label_loss.beside(term, len(region))

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the training network and the plain model; before prepare_distributed."""
        settings = {"backend": backend, "mode": mode, **compile_kwargs}
        evaluated = torch.compile(self._without_extras(self.trainable_module), **settings)
        self._evaluated = (evaluated,)
        self.trainable_module = torch.compile(self.trainable_module, **settings)
        return evaluated

    def _without_extras(self, module: nn.Module) -> nn.Module:
        """The plain model, without the region head."""
        return unwrap_model(module).model

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Clock, generator, history and region head; loadable with weights_only=True."""
        if ema:
            return {"region_head": self._head_state(self.get_trainable_module(ema=True))}
        return {**super().get_task_state(module), "region_head": self._head_state(self.get_trainable_module())}

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "history": None if self._begins_epoch() else self.history}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Another rank than the one that took it starts without history."""
        super()._load_own_state(state)
        own = state.get("history") if state["rank"] == self.rank else None
        self.history = own and {name: value.to(self.device) for name, value in own.items()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Continue where `state` was taken."""
        if not state:
            return
        super().load_task_state(state, strict, module, ema)
        head = unwrap_model(self.get_trainable_module(ema=ema)).region_head
        if head is not None and state.get("region_head"):
            head.load_state_dict(state["region_head"], strict=strict)

    @staticmethod
    def _head_state(module: nn.Module | None) -> dict[str, Tensor]:
        head = unwrap_model(module).region_head
        return {} if head is None else head.state_dict()


class _RegionNet(nn.Module):
    """A plain model that also classifies the features under a box.

    Shapes: (images [B, C, H, W], box [4]) -> logits [B, K], the region's logits [B, K].
    """

    def __init__(self, model: nn.Module, shared: bool, num_classes: int):
        super().__init__()
        self.model = model
        features, dtype = unwrap_model(model).num_features, next(model.parameters()).dtype
        self.region_head = None if shared else nn.Linear(features, num_classes, dtype=dtype)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        model: Any = unwrap_model(self.model)
        return (model.get_classifier(),) if self.region_head is None else (model.get_classifier(), self.region_head)

    def no_weight_decay(self) -> set[str]:
        return names_without_decay(self.model, "model")

    def group_matcher(self, coarse: bool = False) -> Any:
        return prefix_matcher(self.model.group_matcher(coarse=coarse), "model")

    def forward(self, images: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        size = images.shape[-2:]
        features = self.model.forward_features(images)
        logits = self.model.forward_head(features)
        maps = feature_map(self.model, features, size)
        vector = region_vector(maps, box, size)
        if self.region_head is not None:
            return logits, self.region_head(vector.to(self.region_head.weight.dtype))
        return logits, region_logits(self.model, vector.to(features.dtype), tokens=features.ndim == 3)
