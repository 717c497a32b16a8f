"""Stands for timm's onnx_validate.py."""

import argparse

import onnxruntime
import torch
from common import loader_of
from timm.utils import AverageMeter, accuracy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--onnx-input")
    parser.add_argument("-j", "--workers", type=int, default=2)
    parser.add_argument("-b", "--batch-size", type=int, default=256)
    parser.add_argument("--img-size", type=int)
    args = parser.parse_args()
    args.data_dir, args.split = args.data, ""
    session, top1 = onnxruntime.InferenceSession(args.onnx_input), AverageMeter()
    name = session.get_inputs()[0].name
    for images, target in loader_of(args):
        logits = torch.from_numpy(session.run([], {name: images.numpy()})[0])
        top1.update(accuracy(logits, target)[0].item(), len(target))
    print(f"* Prec@1 {top1.avg:.3f}")


if __name__ == "__main__":
    main()
