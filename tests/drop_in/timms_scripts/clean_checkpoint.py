"""Stands for timm's clean_checkpoint.py."""

import argparse

from safetensors.torch import save_file
from timm.models import load_state_dict


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint")
    parser.add_argument("--output")
    parser.add_argument("--no-hash", action="store_true")
    parser.add_argument("--safetensors", action="store_true")
    args = parser.parse_args()
    state = load_state_dict(args.checkpoint)
    save_file({name: value.contiguous() for name, value in state.items()}, args.output)


if __name__ == "__main__":
    main()
