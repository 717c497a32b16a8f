"""Fine-tune a model on your own images.

    timm-mix finetune --model local-dir:output/mixmo_resnet50_m2/model --data-dir IMAGES
    timm-mix finetune --model resnet50 --data-dir IMAGES --layer-decay 0.75 --model-ema
    timm-mix finetune --model hf-hub:ORG/NAME --data-dir CLASS_FOLDERS --val-fraction 0.2 --linear-probe

The model is any name that timm knows (with its weights, where it has any), a folder that save_pretrained wrote, or one
on the hub: plain, folded, MixMo or SplitNet. IMAGES holds train/ and val/ (or test/) with one folder per class. All
members get a new head; image size, mean and standard deviation stay the model's own. Everything that train.py takes is
taken here, with the defaults of --help. The run's folder (--output / --experiment) gets results.json, checkpoints/ and
model/, ready for the hub, with the names of the classes in its config.json; the last line printed loads it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import huggingface_hub

from timm_mix.tasks import TASKS, MemberTask
from timm_mix.train.finetune.plan import make_task, open_data, prepare_model, settle
from timm_mix.train.finetune.settings import FinetuneConfig
from timm_mix.train.finetune.weights import open_model
from timm_mix.train.run import run
from timm_mix.train.settings.config import parse_config

ABOUT = (
    "Fine-tune a model on your own images. Plain models are trained with cross-entropy; MixMo and SplitNet with the "
    "mean of their members' losses on one and the same image, as they are used at test time, or by --task "
    + " or ".join(name for name, task in TASKS.items() if issubclass(task, MemberTask))
    + ". "
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line says; returns the content of results.json (on the main process)."""
    huggingface_hub.logging.set_verbosity_error()  # its retries would stand around the one line of an error
    config = settle(parse_config(argv, FinetuneConfig, ABOUT))
    results = run(
        config,
        open_data=partial(open_data, config.data, config.model, config.finetune, config.run.seed),
        make_model=partial(open_model, config.finetune),
        prepare_model=partial(prepare_model, config.finetune, config.model),
        make_task=partial(make_task, teacher=config.finetune.teacher, fed=config.model),
    )
    if results:
        # a model card from `results` belongs here, beside the weights
        print(how_to_load(config), flush=True)
    return results


def how_to_load(config: FinetuneConfig) -> str:
    """The line that gives the fine-tuned model."""
    return f"import timm, timm_mix; model = timm.create_model('local-dir:{config.folder / 'model'}', pretrained=True)"
