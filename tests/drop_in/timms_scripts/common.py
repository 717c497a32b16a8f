"""What several of the stand-ins share.

They are written as timm's scripts of the same names are: the same names imported from timm, the same flags (as far as
the tests give them) and order of calls; they know nothing of timm_mix.
"""

import argparse
import importlib
import json

from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model, load_checkpoint
from timm.utils import ParseKwargs


def parser_of_models(data=True):
    parser = argparse.ArgumentParser()
    if data:
        parser.add_argument("--data-dir")
        parser.add_argument("--split", default="validation")
        parser.add_argument("-j", "--workers", type=int, default=4)
        parser.add_argument("--checkpoint", default="")
    parser.add_argument("-m", "--model", default="resnet50")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("-b", "--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--device-modules", nargs="+")
    return parser


def model_of(args, **kwargs):
    for module in args.device_modules or ():
        importlib.import_module(module)
    model = create_model(args.model, num_classes=args.num_classes, **kwargs, **args.model_kwargs)
    if getattr(args, "checkpoint", ""):
        load_checkpoint(model, args.checkpoint)
    return model.to(args.device).eval()


def loader_of(args, model=None):
    config = resolve_data_config(vars(args), model=model)
    dataset = create_dataset("", root=args.data_dir, split=args.split)
    shape = {"input_size": config["input_size"], "batch_size": args.batch_size, "num_workers": args.workers}
    return create_loader(dataset, use_prefetcher=False, **shape)


def say(results):
    print(f"--result\n{json.dumps(results)}")
