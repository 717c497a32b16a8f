"""Settings of the optimizer, its schedule, precision and averaging; the names are timm's."""

from dataclasses import dataclass

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.fields import (
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check_fields,
    setting,
)
from timm_mix.train.settings.model import Floats

__all__ = ["OptimiseSettings"]


@dataclass(frozen=True)
class OptimiseSettings:
    """optimisation

    >>> OptimiseSettings(lr=0.1, block_lr=0.01).of_the_block
    {'block_lr': 0.01}
    """

    epochs: int = setting(100, "passes over the training split", AT_LEAST_1)
    grad_accum_steps: int = setting(1, "batches per update: a larger batch than memory holds", AT_LEAST_1)
    opt: str = setting("sgd", "timm's name of the optimizer: sgd (Nesterov), momentum, adamw, lamb, ...")
    lr: float = setting(0.05, "learning rate after the warm-up, for the batch over all processes", NOT_NEGATIVE)
    momentum: float = setting(0.9, "of optimizers that have one", BELOW_1)
    weight_decay: float = setting(5e-4, "timm's: biases and norm layers are spared", NOT_NEGATIVE)
    divide_weight_decay: bool = setting(
        False, "multiply weight_decay by exp(1 / S - 1), S the number of parts (splitnet)"
    )
    no_decay: tuple[str, ...] | None = setting(
        None, "spare only parameters whose name holds one of these words; default: timm's rule"
    )
    l2_penalty: float = setting(
        0.0,
        "adds l2 * sum of squares of ALL parameters to the loss (gradient 2 * l2 * W), not reported",
        NOT_NEGATIVE,
    )
    opt_eps: float | None = setting(None, "the optimizer's epsilon; default: its own", NOT_NEGATIVE)
    opt_betas: Floats | None = setting(None, "the optimizer's betas; default: its own", FINITE)
    layer_decay: float | None = setting(
        None, "learning rate of a layer over that of the next one, for weights that are good already", POSITIVE
    )
    block_lr: float | None = setting(
        None, "of what the task trains beside the network (Mix Block); default: lr", NOT_NEGATIVE
    )
    block_min_lr: float | None = setting(None, "likewise; default: min_lr", NOT_NEGATIVE)
    block_momentum: float | None = setting(None, "likewise; default: momentum", BELOW_1)
    clip_grad: float | None = setting(None, "largest gradient, against a loss that jumps", POSITIVE)
    clip_mode: str = setting("norm", "what is clipped: norm, value or agc", choices=("norm", "value", "agc"))
    sched: str = setting("cosine", "timm's name of the schedule: cosine, step, multistep, plateau, ..., none")
    sched_on_updates: bool = setting(False, "change the learning rate after every update instead of every epoch")
    warmup_epochs: int = setting(0, "epochs in which the learning rate rises from warmup_lr", AT_LEAST_0)
    warmup_lr: float = setting(1e-5, "where the warm-up begins", NOT_NEGATIVE)
    sched_after_warmup: bool = setting(
        False, "start the schedule where the warm-up ends; default: at epoch 0, under the warm-up (timm's)"
    )
    min_lr: float = setting(0.0, "where the schedule ends", NOT_NEGATIVE)
    lr_floor: float | None = setting(
        None, "cut the schedule off here: it heads for min_lr and stays at the floor", NOT_NEGATIVE
    )
    decay_epochs: float = setting(30, "step: epochs between two steps", POSITIVE)
    decay_milestones: tuple[int, ...] = setting(
        (90, 180, 270),
        "multistep; with --sched-on-updates m acts after m epochs, else after m - 1 (timm's way)",
        AT_LEAST_1,
    )
    decay_rate: float = setting(0.1, "factor of a step of the schedule", POSITIVE)
    cooldown_epochs: int = setting(0, "epochs at min_lr behind the schedule", AT_LEAST_0)
    amp: bool = setting(False, "mixed precision: faster and smaller where the device computes in 16 bits")
    amp_dtype: str = setting("bfloat16", "bfloat16 or float16", choices=("bfloat16", "float16"))
    model_ema: bool = setting(False, "also average the weights over the updates, evaluate and save the average")
    model_ema_decay: float = setting(0.9998, "of the average; it looks back over 1 / (1 - decay) updates", SHARE)
    model_ema_warmup: bool = setting(False, "look back less far in the beginning: for short runs")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.warmup_epochs >= self.epochs and (self.sched_after_warmup or not self.sched_on_updates):
            raise UsageError(
                f"warmup_epochs must be less than epochs, else lr is never used, got {self.warmup_epochs} of "
                f"{self.epochs}; give --warmup-epochs {(self.epochs - 1) // 2}, or more epochs"
            )
        if self.lr_floor is not None and self.block_min_lr is not None:
            raise UsageError("lr_floor cuts off one schedule, block_min_lr makes two; drop one of them")
        if self.block_min_lr is not None and self.sched == "plateau":
            raise UsageError("block_min_lr needs a schedule that is known beforehand, got sched plateau; take cosine")

    @property
    def of_the_block(self) -> dict[str, float]:
        """What is set for a Mix Block alone, by name."""
        given = {name: getattr(self, name) for name in ("block_lr", "block_min_lr", "block_momentum")}
        return {name: value for name, value in given.items() if value is not None}
