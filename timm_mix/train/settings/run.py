"""Settings of where and how a run works; most change nothing of what is learnt."""

from dataclasses import dataclass

from timm_mix.train.settings.fields import AT_LEAST_1, SEED, check_fields, setting

__all__ = ["TRACKERS", "RunSettings"]

TRACKERS = ("tensorboard", "wandb", "csv")


@dataclass(frozen=True)
class RunSettings:
    """run

    >>> RunSettings(export="newest")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: export must be one of last, best, got 'newest'
    """

    output: str = setting("output", "folder of all runs")
    experiment: str | None = setting(None, "folder under output; default: the model's name")
    resume: str | None = setting(None, "a checkpoint, or auto: the run's own newest one")
    seed: int = setting(42, "of everything that is drawn: the same seed gives the same run", SEED)
    imports: tuple[str, ...] = setting(
        (), "modules of your own to import first: methods that they register train by name", flag="--import"
    )
    cpu: bool = setting(False, "stay on the CPU even where there is a GPU")
    member_parallel: bool = setting(False, "one part of the splitnet per process; batch_size is then per S processes")
    deterministic: bool = setting(False, "GPU: only operations that repeat to the bit (the CPU's do anyway); slower")
    checkpoint_interval: int | None = setting(
        None, "updates between checkpoints; default: at the end of every epoch only", AT_LEAST_1
    )
    checkpoint_hist: int = setting(2, "how many of the newest checkpoints are kept", AT_LEAST_1)
    tracker: str | None = setting(None, "tensorboard, wandb or csv: logs every epoch there", choices=(None, *TRACKERS))
    log_interval: int = setting(50, "batches between looks at the loss", AT_LEAST_1)
    export: str = setting("last", "weights of the saved model: last or best epoch", choices=("last", "best"))

    def __post_init__(self) -> None:
        check_fields(self)
