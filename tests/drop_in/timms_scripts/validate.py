"""Stands for timm's validate.py."""

import csv

import torch
from common import loader_of, model_of, parser_of_models, say
from timm.utils import AverageMeter, accuracy


def main():
    parser = parser_of_models()
    parser.add_argument("--results-file", default="")
    args = parser.parse_args()
    model, top1 = model_of(args), AverageMeter()
    with torch.inference_mode():
        for images, target in loader_of(args, model):
            top1.update(accuracy(model(images), target)[0].item(), len(target))
    results = {"model": args.model, "top1": round(top1.avg, 4)}
    if args.results_file:
        with open(args.results_file, "w", newline="") as file:
            writer = csv.DictWriter(file, results)
            writer.writeheader()
            writer.writerow(results)
    say(results)


if __name__ == "__main__":
    main()
