"""One training run: epochs of steps, evaluation, checkpoints, results."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.data import Mixup
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from timm_mix.metrics import evaluate_members
from timm_mix.train.data.loaders import epoch_batches
from timm_mix.train.data.reading import FaultyBatch
from timm_mix.train.errors import Stopped, UsageError
from timm_mix.train.files import write_json
from timm_mix.train.loop.guards import LossGuard
from timm_mix.train.loop.keeper import Keeper, Progress, report_unwritten
from timm_mix.train.loop.member_parallel import MemberParallel
from timm_mix.train.loop.parallel import DataParallel
from timm_mix.train.loop.results import describe_machine, describe_results, in_words, score
from timm_mix.train.loop.signals import Agreement, StopSignals
from timm_mix.train.loop.trackers import figures_of, start_tracker
from timm_mix.train.settings.config import Config

__all__ = ["Trainer"]

STOP_EVERY = 8  # updates, or batches of an evaluation, between two times that several processes ask each other to stop
FAULT = 1 << 16  # what they then say of an image that cannot be read; larger than any signal


class Trainer:
    """Holds the parts of a run and runs it; every part is built by `timm_mix.train.loop.build`.

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
        self.multi_label = about.get("data", {}).get("multi_label", False)
        self.model = unwrap_model(task.get_eval_model())
        self.updates_per_epoch = -(-len(train_loader) // config.optimise.grad_accum_steps)
        if config.optimise.model_ema:
            averaging = config.optimise
            task.setup_ema(decay=averaging.model_ema_decay, use_warmup=averaging.model_ema_warmup)
        if config.model.torchcompile:
            task.compile()
        task.trainable_module = self.parallel.prepare(task.get_trainable_module())
        self.optimizer = accelerator.prepare(optimizer)
        self.machine = describe_machine(accelerator.device, accelerator.num_processes)
        parts = {"task": task, "optimizer": self.optimizer, "schedule": schedule, "scaler": accelerator.scaler}
        facts = {"batches per epoch": len(train_loader), **about.get("data", {})}
        self.keeper = Keeper(config, accelerator, self.parallel, parts, facts)
        self.progress = Progress()
        self.fault: str | None = None
        self.signals = StopSignals()
        self.agreement = Agreement(accelerator.num_processes)
        self.stop_every = 1 if accelerator.num_processes == 1 else STOP_EVERY
        self.guard = LossGuard(self.agreement)

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row of figures for every finished epoch."""
        return self.progress.history

    def run(self) -> dict[str, Any]:
        """Train from the start, or from the checkpoint that the settings name; returns the content of results.json.

        Raises:
            Stopped: SIGTERM or SIGINT came; the run has been saved.
            UsageError: a checkpoint that does not fit, a loss that is not finite, an image that cannot be read, files
                that cannot be written.
        """
        self.progress = progress = self.keeper.resume()
        start_tracker(self.accelerator, self.config.run, self.folder, progress.history)
        if self.accelerator.is_main_process and "predicted_cost" in self.about:
            print(f"predicted cost: {self.about['predicted_cost']}", flush=True)
        if progress.epoch >= self.epochs:  # resumed when everything was done
            if self.accelerator.is_main_process:
                print(f"the run is finished, it has {progress.epoch} epochs; more --epochs go on with it", flush=True)
            self.keeper.save(progress, final=True)
            return self._write_results()
        results: dict[str, Any] = {}
        with self.signals:
            while progress.epoch < self.epochs:
                row = self._run_epoch()
                results = self._write_results()
                self._report(row)
                if progress.epoch < self.epochs:
                    self._stop_if_asked(saved=True)
        return results

    def _run_epoch(self) -> dict[str, Any]:
        """Train, evaluate and save; returns the epoch's row of figures."""
        progress = self.progress
        # the length of a stream is an estimate, by which the schedule goes
        progress.update = max(progress.update, progress.epoch * self.updates_per_epoch)
        if progress.lr is None:
            progress.lr = self.optimizer.param_groups[0]["lr"]
        means = self._train_epoch()
        row: dict[str, Any] = {"epoch": progress.epoch, "lr": progress.lr, "train": means}
        row["train_seconds"] = round(progress.seconds, 3)
        row |= {name: self._evaluate(model) for name, model in self._evaluated().items()}
        if self.schedule is not None:
            self.schedule.step(progress.epoch + 1, score(row))
        progress.finish_epoch(row)
        self._log(row)
        self.keeper.save(progress, final=progress.epoch == self.epochs)
        return row

    def _train_epoch(self) -> dict[str, float]:
        """The rest of a pass over the training loader; the mean of every scalar that the task reported in all of it."""
        progress = self.progress
        if not progress.trained:
            self._train_batches()
            self._stop_if_asked()
            for model in self._evaluated().values():
                self.parallel.average_batchnorm(model)
            progress.trained = True
        total = {name: float(value) for name, value in self._sum(progress.sums).items()}
        return {name: value / total["batches"] for name, value in total.items() if name != "batches"}

    def _train_batches(self) -> None:
        progress, config, device = self.progress, self.config, self.accelerator.device
        place = (progress.epoch, config.run.seed, self.parallel.seed_rank, progress.batch)
        length = len(self.train_loader)
        self.task.get_trainable_module().train()
        group: list[tuple[Tensor, Tensor]] = []
        self._clock = time.perf_counter()
        with self._bar(length) as bar:
            # after its last batch a stream would be read once more for nothing
            for batch in epoch_batches(self.train_loader, *place, device) if progress.batch < length else ():
                group.append(self._sound(batch))
                bar.update()
                if len(group) == config.optimise.grad_accum_steps or progress.batch + len(group) == length:
                    self._step(group, bar)
                    group = []

    def _sound(self, batch: Any) -> tuple[Tensor, Tensor]:
        """A batch of a loader; a fault in it ends the run when the processes next ask each other to stop."""
        if not isinstance(batch, FaultyBatch):
            return batch
        self.fault = self.fault or batch.fault
        return batch.images, batch.target

    def _step(self, group: list[tuple[Tensor, Tensor]], bar: tqdm) -> None:
        """One update, and what has to be done between two: looks at the loss, a checkpoint, the end."""
        progress, config = self.progress, self.config
        sums = self._update(group, progress.update)
        self.guard.see(progress.update, sums["loss"] / sums["batches"])
        _add(progress.sums, sums)
        progress.batch += len(group)
        progress.update += 1
        now = time.perf_counter()
        progress.seconds += now - self._clock
        self._clock = now
        at_end = progress.batch == len(self.train_loader)
        interval = config.run.checkpoint_interval
        due = bool(interval) and progress.update % (interval or 1) == 0
        if due or at_end or len(self.guard) >= config.run.log_interval:
            self.guard.check(self._trained() if due or at_end else None)
            bar.set_postfix(loss=f"{self.guard.last_finite:.4f}", refresh=False)
        if not at_end and (due or progress.update % self.stop_every == 0):
            self._stop_if_asked()
        if due and not at_end:
            self.keeper.save(progress)
            self._clock = time.perf_counter()

    def _stop_if_asked(self, *, saved: bool = False) -> None:
        """All processes together, because a signal may reach one of them first."""
        number = self.agreement.largest(self.signals.received if self.fault is None else FAULT)
        if not number:
            return
        if number == FAULT:
            self._refuse()
        if not saved:
            self.guard.check(self._trained())
            self.keeper.save(self.progress, final=True)
        name = signal.Signals(number).name
        line = f"stopped by {name} after update {self.progress.update}, which is saved; go on with --resume auto"
        raise Stopped(line, number)

    def _refuse(self) -> NoReturn:
        """All processes tell of the first fault. Of updates in which an image was black nothing is saved."""
        if self.progress.trained:
            self.keeper.save(self.progress, final=True)
        raise UsageError(next(fault for fault in gather_object([self.fault]) if fault is not None))

    def _trained(self) -> nn.Module:
        return unwrap_model(self.task.get_trainable_module())

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
        optimise = self.config.optimise
        if optimise.l2_penalty or optimise.clip_grad is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        if optimise.l2_penalty:
            _add_l2_gradient(self.task.get_trainable_module(), optimise.l2_penalty)
        if optimise.clip_grad is not None:
            self.parallel.clip(self.task, optimise)
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
        if self.mixup is None:
            return images, target
        off = self.config.task.mixup_off_epoch
        self.mixup.mixup_enabled = not off or self.progress.epoch < off
        return self.mixup(images, target)

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.accelerator.device, non_blocking=True)
        if self.config.model.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _evaluated(self) -> dict[str, nn.Module]:
        """The models that are evaluated, by the names of their figures."""
        averaged = {"eval_ema": unwrap_model(self.task.get_eval_model(ema=True))} if self.task.has_ema() else {}
        return {"eval": self.model, **averaged}

    def _evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Scores over all processes, each of which holds its own share of the samples exactly once."""
        with self.accelerator.autocast():
            images = self._evaluation_batches()
            metrics = evaluate_members(
                self.parallel.evaluable(model), images, self.accelerator.device, multi_label=self.multi_label
            )
        if self.agreement.largest(int(self.fault is not None)):
            self._refuse()
        metrics.reduce(self.parallel.sum_scores)
        return {name: dataclasses.asdict(scores) for name, scores in metrics.compute().items()}

    def _evaluation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A run that is stopped between two of them has been saved as it was before the evaluation."""
        bar = tqdm(self.eval_loader, desc="evaluate", leave=False, disable=self._quiet(), unit="batch")
        # a process may have a batch more than another, and nobody knows how long the shares of a stream are
        is_stream = isinstance(getattr(self.eval_loader, "dataset", None), IterableDataset)
        together = -self.agreement.largest(0 if is_stream else -len(self.eval_loader))
        for number, batch in enumerate(bar, 1):
            yield self._sound(batch)
            if self.agreement.processes == 1 or (number <= together and number % self.stop_every == 0):
                self._stop_if_asked()

    def _sum(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(sums)
        joined = torch.stack([sums[name].double() for name in names])
        return dict(zip(names, self.accelerator.reduce(joined, reduction="sum"), strict=True))

    def _write_results(self) -> dict[str, Any]:
        """results.json of the epochs so far; only the main process writes."""
        if not self.accelerator.is_main_process:
            return {}
        content = describe_results(self.config, self.history, self.about, self.machine)
        try:
            write_json(self.folder / "results.json", content)
        except OSError as error:
            report_unwritten("results.json", error, final=self.progress.epoch >= self.epochs)
        return content

    def _log(self, row: dict[str, Any]) -> None:
        """Before the checkpoint: of an epoch that was saved nothing is missing."""
        try:
            self.accelerator.log(figures_of(row), step=row["epoch"])
        except OSError as error:
            report_unwritten("the tracker's file", error, final=self.progress.epoch >= self.epochs)

    def _report(self, row: dict[str, Any]) -> None:
        """One line per epoch."""
        if not self.accelerator.is_main_process:
            return
        line = f"epoch {row['epoch'] + 1}/{self.epochs}  loss {row['train']['loss']:.4f}  {in_words(row)}"
        print(f"{line}  ({row['train_seconds']:.0f} s)", flush=True)

    def _bar(self, length: int) -> tqdm:
        name = f"epoch {self.progress.epoch + 1}/{self.epochs}"
        start = self.progress.batch
        return tqdm(total=length, initial=start, desc=name, leave=False, disable=self._quiet(), unit="batch")

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
