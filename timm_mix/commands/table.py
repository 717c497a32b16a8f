"""What a division costs: parameters and multiply-accumulates of one part and of all S parts, for any architectures.

    timm-mix table resnet50 convnext_tiny [--split 1 2 4 8] [--csv FILE.csv] [--plot FILE.png]

Counted for one image of the network's own size and number of classes, without computing anything; multiply-accumulates
are those of convolutions, matrix products and attention in evaluation. Ratios are those of all parts to the whole.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import timm_mix
from timm_mix.lab.pictures.plots import plot_division
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_whole
from timm_mix.train.settings.text import Parser

SPLITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    """One division; `width` is the number of features of one part, ratios are of all parts to the whole network."""

    arch: str
    split: int
    width: int
    part_parameters: int
    parameters: int
    part_macs: int
    macs: int
    parameters_ratio: float
    macs_ratio: float


def division_rows(arch: str, splits: Sequence[int]) -> list[Row]:
    """A row per S.

    Raises:
        UsageError: an architecture that timm does not know, or an S that it cannot take.
    """
    if not timm.is_model(arch.split(".")[0]):
        raise UsageError(f"timm knows no model {arch!r}; timm.list_models() lists them")
    whole_parameters, whole_macs, _ = _count(_part(arch, 1))
    rows = []
    for split in splits:
        parameters, macs, width = _count(_part(arch, split))
        ratios = split * parameters / whole_parameters, split * macs / whole_macs
        rows.append(Row(arch, split, width, parameters, split * parameters, macs, split * macs, *ratios))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    arch = max(len("architecture"), *(len(row.arch) for row in rows))
    head = f"{'architecture':{arch}}  S  width  M params: part      all  ratio  GMACs: part      all  ratio"
    lines = [
        f"{row.arch:{arch}} {row.split:2d} {row.width:6d} "
        f"{row.part_parameters / 1e6:15.3f} {row.parameters / 1e6:8.3f} {row.parameters_ratio:6.3f} "
        f"{row.part_macs / 1e9:12.3f} {row.macs / 1e9:8.3f} {row.macs_ratio:6.3f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def format_csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return stream.getvalue()


def _part(arch: str, split: int) -> Any:
    with user_errors(f"divide {arch} into {split}"):
        division = timm_mix.divide(arch, split) if split != 1 else {}
        return timm.create_model(**{"model_name": arch, "device": "meta", **division}).eval()


@torch.no_grad()
def _count(model: Any) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates for one image, and features of a network without weights."""
    image = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")
    with FlopCounterMode(display=False) as counter:
        model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, model.num_features


def _all_rows(archs: Sequence[str], splits: Sequence[int] | None) -> list[Row]:
    """Rows of the S asked for; without any, of the usual ones that each architecture takes."""
    rows: list[Row] = []
    for arch in archs:
        refusals = []
        for split in splits or SPLITS:
            try:
                rows += division_rows(arch, [split])
            except UsageError as error:
                if splits or split == 1:
                    raise
                refusals.append(error)
        if len(refusals) == len(SPLITS) - 1:
            raise refusals[0]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("archs", nargs="+", metavar="ARCH", help="timm model names")
    parser.add_argument("--split", type=int, nargs="+", metavar="S", help="default: those of 1 2 4 8 that each takes")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the exact counts")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw width and cost over the number of parts")
    args = parser.parse_args(argv)
    rows = _all_rows(args.archs, args.split)
    print(format_table(rows))
    if args.csv:
        with user_errors(f"write {args.csv}"):
            write_whole(args.csv, lambda stream: stream.write(format_csv(rows).encode()))
        print(f"written to {args.csv}")
    if args.plot:
        with user_errors(f"write {args.plot}"):
            plot_division(args.plot, rows)
        print(f"written to {args.plot}")
