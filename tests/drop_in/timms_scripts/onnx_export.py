"""Stands for timm's onnx_export.py."""

import argparse

from timm.models import create_model
from timm.utils.onnx import onnx_export


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--model", "-m", default="mobilenetv3_large_100")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("-b", "--batch-size", type=int, default=1)
    args = parser.parse_args()
    model = create_model(
        args.model, num_classes=args.num_classes, in_chans=3, checkpoint_path=args.checkpoint, exportable=True
    )
    size = (3, args.img_size, args.img_size)
    onnx_export(model, args.output, input_size=size, batch_size=args.batch_size, check_forward=True)


if __name__ == "__main__":
    main()
