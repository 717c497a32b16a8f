"""Stands for timm's avg_checkpoints.py."""

import argparse
from pathlib import Path

import torch
from timm.models import load_state_dict


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input")
    parser.add_argument("--filter", default="*.pth.tar")
    parser.add_argument("--output")
    parser.add_argument("-n", type=int, default=10)
    args = parser.parse_args()
    states = [load_state_dict(str(path)) for path in sorted(Path(args.input).glob(args.filter))[: args.n]]
    average = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    torch.save(average, args.output)


if __name__ == "__main__":
    main()
