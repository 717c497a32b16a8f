"""Stands for timm's inference.py."""

import csv
from pathlib import Path

import torch
from common import loader_of, model_of, parser_of_models


def main():
    parser = parser_of_models()
    parser.add_argument("--results-dir")
    parser.add_argument("--results-format", nargs="+", default=["csv"])
    parser.add_argument("--topk", type=int, default=1)
    args = parser.parse_args()
    model = model_of(args)
    loader = loader_of(args, model)
    with torch.inference_mode():
        found = torch.cat([model(images).topk(args.topk).indices for images, _ in loader])
    names = loader.dataset.filenames(basename=True)
    with (Path(args.results_dir) / f"{args.model}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([name, *row] for name, row in zip(names, found.tolist(), strict=True))


if __name__ == "__main__":
    main()
