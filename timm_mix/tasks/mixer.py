"""Plain classification of mixed batches: a mixer in the seat of a timm training task."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from timm_mix.mixers import Mixer
from timm_mix.tasks._base import MixingTask
from timm_mix.tasks.facts import Facts

__all__ = ["MixerTask"]


class MixerTask(MixingTask):
    """A mixer mixes every batch on its device, at the start of the step; the network learns the soft labels.

    The mixer draws from a generator of (seed, rank), whose state is the task's. From off_epoch on it leaves images and
    labels alone, but for its label_smoothing, and draws nothing.

    Args:
        mixer: see mixers.create_mixer.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, off_epoch, ...).
    Shapes: task(input [B, C, H, W], target [B] or [B, K]) -> dict with loss: scalar.   output: [B, K], of the mix.
    Raises:
        ValueError: a target of another shape, and what MixingTask raises.

    >>> import timm, torch
    >>> from timm_mix.mixers import create_mixer
    >>> model = timm.create_model("test_resnet", num_classes=5)
    >>> task = MixerTask(model, mixer=create_mixer("cutmix", num_classes=5), num_classes=5)
    >>> task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["output"].shape
    torch.Size([4, 5])
    """

    facts = Facts(ends_mixing=True)

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        mixer: Mixer,
        **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        self.mixer = mixer
        self._hand_over()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        if input.ndim != 4:
            raise ValueError(f"input must be a batch of images [B, C, H, W], got {list(input.shape)}")
        target = self._checked_target(input, target)
        self.mixer.mixup_enabled = self.mixes
        labels = self.label_loss.labels(target)
        mixed, rows = self.mixer(input, labels.rows)
        logits = self.trainable_module(mixed)
        loss = self.label_loss(logits, labels._replace(rows=rows))
        self.step += 1
        return {"loss": loss, "output": logits}

    def _own_state(self) -> dict[str, Any]:
        """The clock and the mixer's generator."""
        self.rng.bit_generator.state = self.mixer.rng.bit_generator.state
        return super()._own_state()

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Another rank than the one that took it draws afresh."""
        super()._load_own_state(state)
        self._hand_over()

    def _hand_over(self) -> None:
        self.mixer.rng.bit_generator.state = self.rng.bit_generator.state  # in place: a switch shares its generator
