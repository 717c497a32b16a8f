"""Convert a checkpoint of the papers' published code into a folder that is ready for the Hub.

    timm-mix convert checkpoint.ckpt --source mixmo --arch wideresnetmixmo_28_10 --members 2 \\
        --license LICENCE --output output/converted
    timm-mix convert released.zip --source splitnet --arch wide_resnet28_10 --members 2 --output FOLDER

writes config.json, model.safetensors and README.md (where the weights come from, their licence, what was not verified);
whole or not at all. --license is what the authors put their weights under; only SplitNet's is known here (CC BY-NC
4.0). For AutoMix and SAMix --network and --head choose one of the networks and heads in the checkpoint.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

import timm_mix
from timm_mix.card import LICENCES, SourceFacts, check_license, file_hash, make_converted_card
from timm_mix.convert import official_classes, official_network, read_official
from timm_mix.hub import save_pretrained
from timm_mix.lab.release.releasing import forget_origin, replacing
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_whole
from timm_mix.train.settings.text import Parser

SOURCES = ("mixmo", "splitnet", "recursivemix", "openmixup")


def main(argv: Sequence[str] | None = None) -> Path:
    """Run what the command line says; returns the folder."""
    logging.basicConfig(format="  %(message)s")  # what load_official leaves out
    given = _parser().parse_args(argv)
    file, target = Path(given.checkpoint), Path(given.output)
    license = LICENCES.get(given.source) if given.license is None else given.license
    if license is None:
        raise UsageError(f"the licence of weights of source {given.source} is not known here: give --license")
    with user_errors("convert"):
        check_license(license)
        name, settings = official_network(given.source, given.arch, given.members)
    if (stated := LICENCES.get(given.source, license)) != license:
        print(f"warning: the authors released the weights under {stated}, the card will say {license}", file=sys.stderr)
    if not file.is_file():
        raise UsageError(f"the checkpoint must be a file, {file} is none; correct the path")
    with replacing(target) as scratch:
        print(f"1/4 read {file}, {file.stat().st_size / 2**20:.1f} MiB", flush=True)
        with user_errors(f"read {file}"):
            state = read_official(file)
        print(f"2/4 give its {len(state)} tensors their places in {name}", flush=True)
        model = _convert(name, settings, state, {"network": given.network, "head": given.head})
        print(f"3/4 write {target}", flush=True)
        save_pretrained(model, scratch)
        (scratch / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        print("4/4 write the card", flush=True)
        facts = SourceFacts(given.source, given.arch, file.name, file_hash(file), license)
        card = str(make_converted_card(scratch, facts)).encode()
        write_whole(scratch / "README.md", lambda stream: stream.write(card))
    print(f"import timm, timm_mix; model = timm.create_model('local-dir:{target}', pretrained=True)")
    return target


def _convert(
    name: str, settings: dict[str, Any], state: Mapping[str, Tensor], choices: Mapping[str, str | None]
) -> nn.Module:
    with user_errors("convert"):
        classes = official_classes(timm.create_model(name, device="meta", **settings), state)
        model: Any = timm.create_model(name, num_classes=classes, **settings)
        timm_mix.load_official(model, state, **choices)
    forget_origin(model)
    return model


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Convert an official checkpoint into a hub-ready folder.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="its file, or the released zip that holds it")
    parser.add_argument("--source", required=True, choices=SOURCES, help="the published code")
    parser.add_argument("--arch", required=True, help="its name of the network; a wrong one lists them")
    parser.add_argument("--members", type=int, default=1, help="M or S (default: 1)")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--license", help="of the weights, as the Hub names it (default: SplitNet's cc-by-nc-4.0)")
    parser.add_argument("--network", help="AutoMix, SAMix: k (the momentum copy; default) or q")
    parser.add_argument("--head", help="AutoMix, SAMix: one (default) or mix")
    return parser
