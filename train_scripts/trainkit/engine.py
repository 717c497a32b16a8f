"""One training run: epochs of steps, evaluation, checkpoints, results."""

import dataclasses
import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_mix.metrics import evaluate_members
from trainkit.checkpoint import find_checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from trainkit.config import Config
from trainkit.data import start_epoch
from trainkit.errors import UsageError
from trainkit.member_parallel import MemberParallel
from trainkit.parallel import DataParallel
from trainkit.results import describe_machine, score, write_results

__all__ = ["Trainer"]


class Trainer:
    """Holds the parts of a run and runs it; every part is built by `trainkit.build`.

    `mixup` mixes the images and labels of every training batch before the task sees them (mixup, CutMix of baselines).
    `parallel` is how the processes share the work; by default each has the whole model.
    The recipe's `l2_penalty` is added to the gradients, not to the loss: what is reported stays free of it.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        epochs: int,
        train_loader: DataLoader,
        eval_loader: DataLoader,
        about: dict[str, Any],
        mixup: Mixup | None = None,
        parallel: DataParallel | MemberParallel | None = None,
    ):
        self.config, self.accelerator, self.task = config, accelerator, task
        self.parallel = DataParallel(accelerator) if parallel is None else parallel
        self.schedule, self.epochs, self.mixup = schedule, epochs, mixup
        self.train_loader, self.eval_loader, self.about = train_loader, eval_loader, about
        self.model = unwrap_model(task.get_eval_model())
        self.updates_per_epoch = -(-len(train_loader) // config.grad_accum_steps)
        if config.model_ema:
            task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
        if config.torchcompile:
            task.compile()
        task.trainable_module = self.parallel.prepare(task.get_trainable_module())
        self.optimizer = accelerator.prepare(optimizer)
        self.machine = describe_machine(accelerator.device, accelerator.num_processes)
        self.history: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        return self.config.folder

    def run(self) -> dict[str, Any]:
        """Train from the start, or from the checkpoint that the settings name; returns the content of results.json."""
        first = self._resume()
        if self.accelerator.is_main_process and "predicted_cost" in self.about:
            print(f"predicted cost: {self.about['predicted_cost']}", flush=True)
        results: dict[str, Any] = {}
        for epoch in range(first, self.epochs):
            begun = time.perf_counter()
            row: dict[str, Any] = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
            row["train"] = self._train_epoch(epoch)
            row["train_seconds"] = round(time.perf_counter() - begun, 3)
            row["eval"] = self._evaluate(self.model)
            if self.task.has_ema():
                row["eval_ema"] = self._evaluate(unwrap_model(self.task.get_eval_model(ema=True)))
            self.history.append(row)
            if self.schedule is not None:
                self.schedule.step(epoch + 1, score(row))
            results = self._keep(epoch)
            self._report(row)
        if first >= self.epochs:  # resumed when everything was done
            results = self._keep(first - 1)
        return results

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training loader; the mean of every scalar that the task reports."""
        config, loader = self.config, self.train_loader
        start_epoch(loader, epoch, config.seed, self.parallel.seed_rank)
        _seed_everything(config.seed, epoch, self.parallel.seed_rank)
        self.task.get_trainable_module().train()
        sums: dict[str, Tensor] = {}
        group: list[tuple[Tensor, Tensor]] = []
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{self.epochs}", leave=False, disable=self._quiet(), unit="batch")
        for step, batch in enumerate(bar):
            group.append(batch)
            if len(group) == config.grad_accum_steps or step + 1 == len(loader):
                update = epoch * self.updates_per_epoch + step // config.grad_accum_steps
                _add(sums, self._update(group, update))
                group = []
            if step % config.log_interval == 0 and sums:
                bar.set_postfix(loss=f"{float(sums['loss'] / sums['batches']):.4f}", refresh=False)
        total = {name: float(value) for name, value in self._sum(sums).items()}
        return {name: value / total["batches"] for name, value in total.items() if name != "batches"}

    def _update(self, group: list[tuple[Tensor, Tensor]], update: int) -> dict[str, Tensor]:
        """One optimizer update over a group of batches (gradient accumulation); sums of what the task reports."""
        sums: dict[str, Tensor] = {}
        for i, (images, target) in enumerate(group):
            last = i + 1 == len(group)
            with nullcontext() if last else self.accelerator.no_sync(self.task.get_trainable_module()):
                images, target = self._mixed(images, target)
                with self.accelerator.autocast():
                    result = self.task(images, target)
                self.accelerator.backward(result["loss"] / len(group))
            scalars = {name: value.detach() for name, value in result.items() if value.ndim == 0}
            _add(sums, {**scalars, "batches": torch.ones((), device=result["loss"].device)})
        if self.config.l2_penalty or self.config.clip_grad is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        if self.config.l2_penalty:
            _add_l2_gradient(self.task.get_trainable_module(), self.config.l2_penalty)
        if self.config.clip_grad is not None:
            self.parallel.clip(self.task, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.update_ema(step=update + 1)
        if self.schedule is not None:
            self.schedule.step_update(num_updates=update + 1)
        return sums

    def _mixed(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, mixed if the recipe mixes samples: then the labels are soft."""
        images = self._to_device(images)
        target = target.to(self.accelerator.device, non_blocking=True)
        return (images, target) if self.mixup is None else self.mixup(images, target)

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.accelerator.device, non_blocking=True)
        if self.config.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Scores over all processes, each of which holds its own share of the samples exactly once."""
        self.parallel.average_batchnorm(model)
        bar = tqdm(self.eval_loader, desc="evaluate", leave=False, disable=self._quiet(), unit="batch")
        with self.accelerator.autocast():
            metrics = evaluate_members(self.parallel.evaluable(model), bar, self.accelerator.device)
        metrics.reduce(self.parallel.sum_scores)
        return {name: dataclasses.asdict(scores) for name, scores in metrics.compute().items()}

    def _sum(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(sums)
        joined = torch.stack([sums[name].double() for name in names])
        return dict(zip(names, self.accelerator.reduce(joined, reduction="sum"), strict=True))

    def _keep(self, epoch: int) -> dict[str, Any]:
        """Checkpoints and results of the epoch that just ended; only the main process writes."""
        tops = [score(row) for row in self.history]
        # the first of equally good epochs, as write_results has it
        names = ["last.pt", "best.pt"] if tops.index(max(tops)) == len(tops) - 1 else ["last.pt"]
        for name in names:
            save_checkpoint(
                self.folder / "checkpoints" / name,
                task=self.task,
                optimizer=self.optimizer,
                schedule=self.schedule,
                scaler=self.accelerator.scaler,
                epoch=epoch,
                history=self.history,
                config=dataclasses.asdict(self.config),
                main=self.accelerator.is_main_process,
                whole=self.parallel.whole,
            )
        if not self.accelerator.is_main_process:
            return {}
        return write_results(self.folder, self.config, self.history, self.about, self.machine)

    def _resume(self) -> int:
        if self.config.resume is None:
            return 0
        path = find_checkpoint(self.config.resume, self.folder)
        if path is None:
            return 0
        content = read_checkpoint(path)
        self._check_resume(path, content["config"])
        first, self.history = load_checkpoint(
            self.parallel.own(content),
            task=self.task,
            optimizer=self.optimizer,
            schedule=self.schedule,
            scaler=self.accelerator.scaler,
            rank=self.parallel.share,
        )
        return first

    def _check_resume(self, path: Path, made_with: dict[str, Any]) -> None:
        """A schedule cannot be stretched, and the best weights of another folder are not here."""
        for name in ("epochs", "sched"):
            if made_with.get(name) != getattr(self.config, name):
                raise UsageError(
                    f"{path} was made with {name}={made_with.get(name)}, got {getattr(self.config, name)}; resume with "
                    f"the same, or start anew from its weights"
                )
        best = self.folder / "checkpoints" / "best.pt"
        if self.config.export == "best" and not best.is_file():
            raise UsageError(f"--export best needs {best}; resume in the run's own folder")

    def _report(self, row: dict[str, Any]) -> None:
        """One line per epoch."""
        if not self.accelerator.is_main_process:
            return
        scores = row["eval"]
        members = [value["top1"] for name, value in scores.items() if name != "ensemble"]
        line = f"epoch {row['epoch'] + 1}/{self.epochs}  loss {row['train']['loss']:.4f}  "
        line += f"top-1 {scores['ensemble']['top1']:.2f} %  NLL {scores['ensemble']['nll']:.4f}"
        if len(members) > 1:
            line += f"  members {', '.join(f'{top1:.2f}' for top1 in members)}"
        if "eval_ema" in row:
            line += f"  EMA {row['eval_ema']['ensemble']['top1']:.2f} %"
        print(f"{line}  ({row['train_seconds']:.0f} s)", flush=True)

    def _quiet(self) -> bool | None:
        """tqdm: None shows a bar on a terminal only."""
        return None if self.accelerator.is_main_process else True


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


@torch.no_grad()
def _add_l2_gradient(module: nn.Module, penalty: float) -> None:
    """Gradient of penalty * sum of squares over all trainable parameters, norm layers and biases included.

    Once per update, on the averaged and unscaled gradients: so it is exact whatever the accumulation, the loss scale
    and the number of processes, which all add the same.
    """
    parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    grads: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:  # not reached by the loss: the penalty shrinks it all the same
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    torch._foreach_add_(grads, parameters, alpha=2 * penalty)


def _seed_everything(seed: int, epoch: int, rank: int) -> None:
    """Dropout and the like: a function of (seed, epoch, rank), so that a run resumed at an epoch goes on alike."""
    words = np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
