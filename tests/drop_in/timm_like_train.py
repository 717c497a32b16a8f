"""A small train script over timm's public pieces, used as timm's own is: the same names, flags and order of calls.

It knows nothing of timm_mix.
"""

import argparse
import importlib
import logging
import os
from contextlib import nullcontext

import torch
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader, resolve_data_config
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import (
    CheckpointSaver,
    NativeScaler,
    ParseKwargs,
    accuracy,
    dispatch_clip_grad,
    distribute_bn,
    init_distributed_device,
    random_seed,
    setup_default_logging,
)

_logger = logging.getLogger("train")


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--num-classes", type=int)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("-b", "--batch-size", type=int, default=16)
    parser.add_argument("--grad-accum-steps", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--no-prefetcher", action="store_true")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--sched", default="cosine")
    parser.add_argument("--opt", default="sgd")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--clip-grad", type=float)
    parser.add_argument("--no-aug", action="store_true")
    parser.add_argument("--aug-splits", type=int, default=0)
    parser.add_argument("--resplit", action="store_true")
    parser.add_argument("--jsd-loss", action="store_true")
    parser.add_argument("--bce-loss", action="store_true")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--cutmix", type=float, default=0.0)
    parser.add_argument("--mixup-off-epoch", type=int, default=0)
    parser.add_argument("--kd-model-name")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--amp-dtype", default="float16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--torchcompile", nargs="?", const="inductor")
    parser.add_argument("--model-ema", action="store_true")
    parser.add_argument("--model-ema-decay", type=float, default=0.5)
    parser.add_argument("--resume", default="")
    parser.add_argument("--output", default="output")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--device-modules", nargs="+")
    return parser.parse_args()


def main():
    setup_default_logging()
    args = parse_args()
    for module in args.device_modules or ():
        importlib.import_module(module)
    device = init_distributed_device(args)
    random_seed(args.seed, args.rank)
    model = create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)
    data_config = resolve_data_config(vars(args), model=model)
    model.to(device=device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)

    loader_train, mixup_fn = make_train_loader(args, data_config, device)
    loader_eval = make_loader(args, data_config, device, "val", is_training=False)
    train_loss_fn = make_loss(args).to(device=device)
    if args.kd_model_name:
        task = LogitDistillationTask(model, args.kd_model_name, criterion=train_loss_fn, device=device)
    else:
        task = ClassificationTask(model=model, criterion=train_loss_fn, device=device, verbose=args.rank == 0)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt=args.opt, lr=args.lr, momentum=0.9)
    autocast, loss_scaler = make_amp(args, device)
    resume_epoch, eval_model = set_up(args, task, optimizer, loss_scaler, device)

    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer, sched=args.sched, num_epochs=args.epochs, updates_per_epoch=updates_per_epoch
    )
    saver = None
    if args.rank == 0:
        saver = make_saver(args, task, optimizer, loss_scaler)
    for epoch in range(resume_epoch or 0, num_epochs):
        if hasattr(loader_train.sampler, "set_epoch"):
            loader_train.sampler.set_epoch(epoch)
        train_one_epoch(epoch, args, task, loader_train, mixup_fn, optimizer, loss_scaler, autocast, device)
        top1 = validate_all(args, task, eval_model, loader_eval, autocast, device)
        _logger.info("epoch %d: top1 %.1f", epoch, top1)
        if lr_scheduler is not None:
            lr_scheduler.step(epoch + 1, top1)
        if saver is not None:
            saver.save_checkpoint(epoch, metric=top1)
    if args.distributed:
        torch.distributed.destroy_process_group()


def make_amp(args, device):
    """The autocast of a step, and a scaler of its loss where float16 needs one."""
    amp_dtype = torch.bfloat16 if args.amp_dtype == "bfloat16" else torch.float16
    autocast = torch.autocast(device.type, amp_dtype) if args.amp else nullcontext()
    return autocast, NativeScaler(device=device.type) if args.amp and amp_dtype == torch.float16 else None


def set_up(args, task, optimizer, loss_scaler, device):
    """Resume, average, compile and distribute; the epoch to go on with and the model to evaluate."""
    eval_model = task.get_eval_model()
    resume_epoch = None
    if args.resume:
        resume_epoch = resume_task_checkpoint(task, args.resume, optimizer=optimizer, loss_scaler=loss_scaler)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        eval_model = task.compile(backend=args.torchcompile)
    if args.distributed:
        task.prepare_distributed(device_ids=[device])
    return resume_epoch, eval_model


def make_saver(args, task, optimizer, loss_scaler):
    os.makedirs(args.output, exist_ok=True)
    return CheckpointSaver(
        model=task.get_trainable_module(),
        optimizer=optimizer,
        args=args,
        amp_scaler=loss_scaler,
        checkpoint_dir=args.output,
        task=task,
    )


def make_loader(args, data_config, device, split, is_training, collate_fn=None):
    dataset = create_dataset("", root=args.data_dir, split=split, is_training=is_training)
    if is_training and args.aug_splits > 1:
        dataset = AugMixDataset(dataset, num_splits=args.aug_splits)
    return create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=args.batch_size,
        is_training=is_training,
        no_aug=args.no_aug,
        re_split=args.resplit,
        num_aug_splits=args.aug_splits if is_training else 0,
        mean=data_config["mean"],
        std=data_config["std"],
        interpolation=data_config["interpolation"],
        crop_pct=1.0,
        num_workers=args.workers,
        distributed=args.distributed,
        collate_fn=collate_fn,
        device=device,
        use_prefetcher=not args.no_prefetcher,
    )


def make_train_loader(args, data_config, device):
    collate_fn, mixup_fn = None, None
    if args.mixup > 0 or args.cutmix > 0:
        mixup_args = {"mixup_alpha": args.mixup, "cutmix_alpha": args.cutmix, "num_classes": args.num_classes}
        if args.no_prefetcher:
            mixup_fn = Mixup(label_smoothing=args.smoothing, **mixup_args)
        else:
            collate_fn = FastCollateMixup(label_smoothing=args.smoothing, **mixup_args)
    return make_loader(args, data_config, device, "train", is_training=True, collate_fn=collate_fn), mixup_fn


def make_loss(args):
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=args.smoothing)
    if args.mixup > 0 or args.cutmix > 0:
        return SoftTargetCrossEntropy()
    if args.smoothing:
        return LabelSmoothingCrossEntropy(smoothing=args.smoothing)
    return torch.nn.CrossEntropyLoss()


def train_one_epoch(epoch, args, task, loader, mixup_fn, optimizer, loss_scaler, autocast, device):
    task.get_trainable_module().train()
    optimizer.zero_grad()
    updates = -(-len(loader) // args.grad_accum_steps)
    for batch_idx, (input, target) in enumerate(loader):
        update_idx = batch_idx // args.grad_accum_steps
        in_group = min(args.grad_accum_steps, len(loader) - update_idx * args.grad_accum_steps)
        need_update = batch_idx == len(loader) - 1 or (batch_idx + 1) % args.grad_accum_steps == 0
        if args.no_prefetcher:
            input, target = input.to(device=device), target.to(device=device)
            if mixup_fn is not None:
                input, target = mixup_fn(input, target)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with task.no_sync() if args.distributed and not need_update else nullcontext():
            with autocast:
                result = task(input, target)
            loss = result["loss"]
            if in_group > 1:
                loss /= in_group
            step(loss, args, task, optimizer, loss_scaler, need_update)
        if need_update:
            optimizer.zero_grad()
            task.update_ema(step=epoch * updates + update_idx + 1)
    assert torch.isfinite(loss)


def step(loss, args, task, optimizer, loss_scaler, need_update):
    if loss_scaler is not None:
        parameters = task.get_clip_parameters()
        loss_scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=parameters, need_update=need_update)
        return
    loss.backward()
    if need_update:
        if args.clip_grad is not None:
            dispatch_clip_grad(task.get_clip_parameters(), value=args.clip_grad)
        optimizer.step()


def validate_all(args, task, eval_model, loader, autocast, device):
    """The accuracy of the model, or of the averaged one where there is one."""
    if args.distributed:
        distribute_bn(task.get_trainable_module(), args.world_size, True)
    top1 = validate(args, eval_model, loader, autocast, device)
    return validate(args, task.get_eval_model(ema=True), loader, autocast, device) if args.model_ema else top1


def validate(args, model, loader, autocast, device):
    model.eval()
    hits, count = 0.0, 0
    with torch.inference_mode():
        for input, target in loader:
            input, target = input.to(device), target.to(device)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            with autocast:
                output = model(input)
            hits += accuracy(output, target)[0].item() * len(target)
            count += len(target)
    return hits / count


if __name__ == "__main__":
    main()
