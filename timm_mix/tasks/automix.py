"""AutoMix (arXiv:2103.13027) and SAMix (arXiv:2111.15454) training of any timm model, as a timm training task."""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.automix import (
    AutoMixPlan,
    mask_loss,
    mask_loss_weight,
    momentum_at,
    plan_automix,
)
from timm_mix.functional.checks import check_count, check_not_negative, check_probability, check_share
from timm_mix.tasks._base import MixingTask, check_unwrapped
from timm_mix.tasks._early_gradient import Taken, in_float16, take_gradient
from timm_mix.tasks._mix_block import MIX_BLOCKS, make_mix_block
from timm_mix.tasks._two_heads import OnlineNet, TwoHeads, stage_of_reduction
from timm_mix.tasks.facts import Example, Facts, Method, Work

__all__ = ["AutoMixTask"]

METHOD = Method(
    title="AutoMix",
    tag="automix",
    about="In training a small network learned where to mix two images, from how well they were recognised "
    "afterwards. What is left is the momentum copy of the classifier, a plain network.",
    card="automix.md",
    arxiv="2103.13027",
    bibtex="""@inproceedings{liu2022automix,
  title     = {AutoMix: Unveiling the Power of Mixup for Stronger Classifiers},
  author    = {Liu, Zicheng and Li, Siyuan and Wu, Di and Liu, Zihan and Chen, Zhiyuan and Wu, Lirong and Li, Stan Z.},
  booktitle = {European Conference on Computer Vision},
  year      = {2022},
}""",
    source="openmixup",
)

HALF_SCALE = 2.0**10  # of the loss that reaches the pixels through a float16 network


class AutoMixTask(MixingTask):
    """Masks that a Mix Block makes from a momentum copy's features; it learns from what that copy makes of the mix.

    loss = CE(head_one(q(x)), y) + mixup CE(head_mix(q(mixed_bb))) + mixup CE(head_mix_k(k(mixed_mb)))
    + w mask loss (AutoMix, eq. 11). q is the trained model with a second head; k follows it by momentum and is what
    task.get_eval_model() gives and a checkpoint holds: one plain timm model, with `main_head`. The third term reaches
    the Mix Block alone; its gradient is taken at the pixels before q runs, so that no graph of k outlives it.
    Call task.update_ema() after every update, as timm's script does: fused optimizers leave no other trace of one.
    From off_epoch on loss = CE(q(x)) by the published head: no mix is made, the Mix Block rests, k goes on following.

    Args:
        model: a timm model with forward_features, forward_head, forward_intermediates and one linear classifier.
        block: `automix` or `samix`; settings of the blocks by block_kwargs (see tasks/_mix_block.py).
        reduction: of the features that the masks see (published: 4 on CIFAR, 16 on ImageNet); None: what the model has
            of it, see `stage_of_reduction`.
        alpha: lam ~ Beta(alpha, alpha).
        mask_weight, mask_decay: weight of the mask loss; with decay a half cosine to 0.
        variance: masks that decide are rewarded (SAMix).
        mask_adjust: probability that the masks which q sees are rescaled towards lam (SAMix).
        switch_off: probability that the Mix Block learns from the mask loss alone (published .8 for ImageNet's ViTs).
        momentum, momentum_end, momentum_warmup: of the copy; needs total_steps to rise.
        block_every: the Mix Block learns in every n-th step only; cheaper, not published.
        one_hot_prob: probability that q sees the plain batch too, its loss divided by it; cheaper, not published. With
            main_head="mix" it may be 0: plain images are then only what the masks are made from.
        one_hot_share: of the plain batch that q sees then: its first images, two at least, as BatchNorm may need;
            cheaper, not published.
        main_head: the head of the published model: `one` (published), which learns from plain images, or `mix`, which
            learns from mixed ones.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with
        loss: scalar.   output: [B, K], of the plain images (of the mixed ones where q does not see all of those).
        ce, mixed, block, mask: the four terms, unweighted and detached.
    Raises:
        ValueError: a setting outside its range, a model without such features or classifier, another target.
    Departs from the published code: the copy's feature pass ends at the masks' stage, so that the BatchNorm statistics
        of its later stages come from mixed images alone.

    >>> import timm
    >>> model = timm.create_model("test_resnet", num_classes=5)
    >>> task = AutoMixTask(model, num_classes=5, reduction=4, total_steps=100)
    >>> result = task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    >>> sorted(result)
    ['block', 'ce', 'loss', 'mask', 'mixed', 'output']
    >>> task.get_eval_model() is model  # but the momentum copy
    False
    """

    shared_state = ("online", "second")  # of the task state: alike on all processes

    facts = Facts(METHOD, own_block=True, ends_mixing=True, example=Example(settings={"momentum": 0.9}))

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        block: str = "automix",
        block_kwargs: dict[str, Any] | None = None,
        reduction: int | None = None,
        alpha: float = 2.0,
        mask_weight: float = 0.1,
        mask_decay: bool = False,
        variance: bool = False,
        mask_adjust: float = 0.0,
        switch_off: float = 0.0,
        momentum: float = 0.999,
        momentum_end: float = 0.999999,
        momentum_warmup: float = 0.1,
        block_every: int = 1,
        one_hot_prob: float = 1.0,
        one_hot_share: float = 1.0,
        main_head: str = "one",
        **kwargs: Any,
    ):
        check_unwrapped(model, type(self).__name__)
        super().__init__(model, criterion, **kwargs)
        _check_settings(block, mask_weight, momentum, momentum_end, momentum_warmup)
        _check_cheaper(block_every, one_hot_prob, one_hot_share, main_head)
        self.draws = {"alpha": alpha, "mask_adjust": mask_adjust, "switch_off": switch_off}
        plan_automix(2, rng=np.random.default_rng(0), **self.draws)  # a wrong setting is an error now
        self.stage, channels = stage_of_reduction(model, reduction)
        mix_block = make_mix_block(block, channels, block_kwargs or {}).to(next(model.parameters()).dtype)
        two = TwoHeads(model, num_classes=self.num_classes)
        self.trainable_module = OnlineNet(two, mix_block, second_mixes=main_head == "one").to(self.device)
        self.follower = copy.deepcopy(unwrap_model(self.trainable_module).two).requires_grad_(False)
        self._evaluated = (self.follower.model,)
        self.mask_weight, self.mask_decay, self.variance = mask_weight, mask_decay, variance
        self.momentum = {"base": momentum, "end": momentum_end, "warmup": momentum_warmup}
        self.switch_off, self.block_every = switch_off, block_every
        self.one_hot_prob, self.one_hot_share, self.main_head = one_hot_prob, one_hot_share, main_head
        self._common_seed = self.seed  # of all processes
        self._caught_up()
        self.register_load_state_dict_post_hook(_loaded)  # loading writes into the parameters as an update does

    @classmethod
    def work(cls, model: nn.Module, image: Tensor, settings: Mapping[str, Any]) -> Work:
        """q twice, k once without weight gradients, k's features up to the masks' stage, and the Mix Block forward for
        q's masks and, where it learns, forward and backward for its own.
        """
        given = {name: p.default for name, p in inspect.signature(cls).parameters.items()} | dict(settings)
        stage, channels = stage_of_reduction(model, given["reduction"])

        def features() -> Tensor:
            return model.forward_intermediates(image, indices=[stage], intermediates_only=True, stop_early=True)[0]

        with torch.no_grad():
            shape = features().shape

        def masks() -> Tensor:
            block = make_mix_block(given["block"], channels, given["block_kwargs"] or {})
            return block(torch.empty(shape), torch.zeros(1, dtype=torch.long), 0.5, tuple(image.shape[2:]))

        share = 1 / given["block_every"]  # of the steps in which the Mix Block learns
        shown = given["one_hot_prob"] * given["one_hot_share"]
        passes = 1 + shown + 2 / 3 * (1 - given["switch_off"]) * share
        return Work(passes, ((1.0, features), (1 + 3 * share, masks)))

    def draw(self, input: Tensor) -> AutoMixPlan:
        """All chance of one step, for a batch like `input`, but for the one-hot pass."""
        plan = plan_automix(input.shape[0], rng=self.rng, **self.draws)
        return dataclasses.replace(plan, switched_off=self._chance(0, self.step) < self.switch_off)

    def passes(self, step: int) -> tuple[bool, bool]:
        """Whether the Mix Block learns in a step, and whether q sees plain images in it."""
        return step % self.block_every == 0, self.one_hot_prob == 1 or self._chance(1, step) < self.one_hot_prob

    def _chance(self, which: int, step: int) -> float:
        """Uniform in [0, 1), a function of the step and alike on all processes.

        Whether a pass is left out must be: the others would wait for the one that runs it, and SyncBatchNorm forever.
        """
        return float(np.random.default_rng([self._common_seed, step, 0, 1]).random(2)[which])

    def forward(self, input: Tensor, target: Tensor, plan: AutoMixPlan | None = None) -> dict[str, Tensor]:
        """One step; `plan` fixes its chance (drawn when it is None)."""
        if input.ndim != 4:
            raise ValueError(f"input must be a batch of images [B, C, H, W], got {list(input.shape)}")
        target = self._checked_target(input, target)
        self._follow()
        self.follower.train(self.get_trainable_module().training)  # timm's script evaluates it and leaves it so
        if plan is None and not self.mixes:
            return self._plain(input, target)
        plan = self.draw(input) if plan is None else plan
        learns, plain_too = self.passes(self.step)
        plain = min(len(input), max(2, math.ceil(self.one_hot_share * len(input)))) if plain_too else 0
        with torch.no_grad():
            features = self._features(input)

        def learn(mixed: Tensor) -> tuple[Tensor, Tensor]:
            return self._pixel_gradient(mixed, target, plan)

        def judge(logits: Tensor) -> tuple[Tensor, Taken]:
            return self._judged(logits, target[:plain])

        learner = learn if learns and not plan.switched_off else None
        one, ce, mixed, masks, block = self.trainable_module(input, features, plan, learns, learner, plain, judge)
        partners = torch.from_numpy(plan.partners_bb).to(input.device, non_blocking=True)
        terms = {"ce": ce, "mixed": self._mixup_ce(mixed, target, partners, plan.lam_bb), "block": block}
        mask = mask_loss(masks, plan.lam_mb, self.variance) if learns else 0.0 * mixed.sum()
        terms["mask"] = self.label_loss.beside(mask, len(input))
        weight = mask_loss_weight(self._iteration, self.mask_weight, self.mask_decay)
        loss = terms["ce"] + terms["mixed"] + terms["block"] + weight * terms["mask"]
        self.step += 1
        output = one if plain == len(input) else mixed
        return {"loss": loss, "output": output, **{name: term.detach() for name, term in terms.items()}}

    def _plain(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """A step without mixing; k sees the images as well, for the statistics of its BatchNorm."""
        if any(True for _ in self.follower.buffers()):
            with torch.no_grad():
                self.follower(input)
        logits, untouched = self.trainable_module(input)
        ce = self.label_loss(logits, target)
        nothing = torch.zeros_like(ce.detach())
        terms = {"ce": ce.detach(), **dict.fromkeys(("mixed", "block", "mask"), nothing)}
        self.step += 1
        return {"loss": ce + untouched, "output": logits, **terms}

    @property
    def _iteration(self) -> float:
        """Steps made over all steps; 0 where the length of the training is not known."""
        return 0.0 if self.total_steps is None else min(1.0, self.step / self.total_steps)

    def _features(self, images: Tensor) -> Tensor:
        model: Any = unwrap_model(self.follower.model)
        return model.forward_intermediates(images, indices=[self.stage], intermediates_only=True, stop_early=True)[0]

    def _pixel_gradient(self, mixed: Tensor, target: Tensor, plan: AutoMixPlan) -> tuple[Tensor, Tensor]:
        """What k makes of mixed images: its mixup loss, and the gradient of that at their pixels."""
        leaf = mixed.detach().requires_grad_()
        partners = torch.from_numpy(plan.partners_mb).to(mixed.device, non_blocking=True)
        with torch.enable_grad():
            logits = self.follower(leaf, second=self.main_head == "one")
            loss = self._mixup_ce(logits, target, partners, plan.lam_mb)
            scale = HALF_SCALE if in_float16(logits) else 1.0
            (gradient,) = torch.autograd.grad(loss * scale, leaf)
        return loss.detach(), gradient / scale

    def _judged(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Taken]:
        """The loss of q's plain pass, and its gradient if that can be taken before the mixed pass.

        In float16 it waits for the loss scale of the caller's backward; so it does where the criterion learns as well.
        """
        ce = self.label_loss(logits, target) / self.one_hot_prob
        learning = isinstance(self.criterion, nn.Module) and any(p.requires_grad for p in self.criterion.parameters())
        if learning or not ce.requires_grad or in_float16(logits):
            return ce, []
        taken = take_gradient(ce, unwrap_model(self.get_trainable_module()).two.parameters())
        return ce.detach(), taken

    def _mixup_ce(self, logits: Tensor, target: Tensor, partners: Tensor, lam: float) -> Tensor:
        labels = self.label_loss.labels(target)
        rows = lam * labels.rows + (1 - lam) * labels.rows[partners]
        return self.label_loss(logits, labels._replace(rows=rows))

    def _updates(self) -> int:
        """Counts the optimizer's updates: every one of them writes into the parameters."""
        return sum(p._version for p in unwrap_model(self.get_trainable_module()).two.parameters())

    def _caught_up(self) -> None:
        self._followed = self._updates(), self.step

    @torch.no_grad()
    def _follow(self, updated: bool = False) -> None:
        """k <- m k + (1 - m) q for parameters, once per update of q; k's BatchNorm statistics are its own.

        A fused optimizer updates without a trace in the parameters' versions: `updated` says that it did.
        """
        updates, step = self._followed
        if updates == self._updates() and not (updated and step < self.step):
            return
        self._caught_up()
        online = unwrap_model(self.get_trainable_module()).two
        own = list(self.follower.parameters())
        theirs = [p.detach().to(p.dtype) for p in online.parameters()]
        torch._foreach_lerp_(own, theirs, 1 - momentum_at(self._iteration, **self.momentum))

    def update_ema(self, step: int | None = None) -> None:
        """The call after every update: k follows, and so does the averaged model where there is one."""
        self._follow(updated=True)
        super().update_ema(step)

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "AutoMixTask":
        """Wrap q in DistributedDataParallel, which takes it from rank 0 everywhere; k and the common seed follow."""
        super().prepare_distributed(device_ids, **ddp_kwargs)
        group = self.get_trainable_module().process_group
        seed = torch.tensor(self._common_seed % 2**63, device=self.device)
        for value in (seed, *self.follower.parameters(), *self.follower.buffers()):
            first = value.detach().contiguous()
            dist.broadcast(first, src=dist.get_global_rank(group, 0), group=group)
            value.detach().copy_(first)
        self._common_seed = int(seed)
        self._caught_up()
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the networks, not the draws between them; before prepare_distributed."""
        online = unwrap_model(self.get_trainable_module())
        for net in (online.two, self.follower):
            net.compile(backend=backend, mode=mode, **compile_kwargs)
        evaluated = torch.compile(self.follower.model, backend=backend, mode=mode, **compile_kwargs)
        self._evaluated = (evaluated,)
        return evaluated

    def _without_extras(self, module: nn.Module) -> nn.Module:
        """The online model: what is evaluated with `ema` is its average."""
        return unwrap_model(module).two.model

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Clock, generator, online network, Mix Block and the copy's second head; loadable with weights_only=True."""
        if ema:
            return {"online": unwrap_model(self.get_trainable_module(ema=True)).state_dict()}
        online = unwrap_model(self.get_trainable_module()).state_dict()
        return {**super().get_task_state(module), "online": online, "second": self.follower.second.state_dict()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Continue where `state` was taken; without one the online network starts from the copy's weights."""
        online = unwrap_model(self.get_trainable_module(ema=ema))
        if not state:
            if not ema:
                online.two.model.load_state_dict(unwrap_model(self.follower.model).state_dict())
        else:
            super().load_task_state(state, strict, module, ema)
            online.load_state_dict(state["online"], strict=strict)
            if not ema:
                self.follower.second.load_state_dict(state["second"], strict=strict)
        self._caught_up()


def _loaded(task: AutoMixTask, _: Any) -> None:
    task._caught_up()


def _check_settings(block: str, weight: float, base: float, end: float, warmup: float) -> None:
    MIX_BLOCKS.find(block)
    check_not_negative("mask_weight", weight)
    for name, value in (("momentum", base), ("momentum_end", end), ("momentum_warmup", warmup)):
        check_probability(name, value)


def _check_cheaper(block_every: int, one_hot_prob: float, one_hot_share: float, main_head: str) -> None:
    if main_head not in ("one", "mix"):
        raise ValueError(f"main_head must be one or mix, got {main_head!r}")
    if main_head == "mix" and one_hot_prob == 0 and not isinstance(one_hot_prob, bool):
        one_hot_prob = 1.0  # nothing that is published waits for plain images
    check_count("block_every", block_every)
    check_share("one_hot_prob", one_hot_prob)
    check_share("one_hot_share", one_hot_share)
