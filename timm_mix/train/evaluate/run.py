"""One evaluation, section by section: figures, attacks, corruptions, throughput, pictures."""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.utils.data import Dataset

from timm_mix.metrics import calibration_bins, cross_fit_temperature, risk_coverage
from timm_mix.train.data.labels import is_multi_label
from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.canvas import NO_MATPLOTLIB, can_draw
from timm_mix.train.evaluate.corruptions import SEVERITIES, Corruption, NpyCorruption, families_in
from timm_mix.train.evaluate.figures import (
    plot_corruptions,
    plot_fgsm,
    plot_members,
    plot_precision_recall,
    plot_reliability,
    plot_risk_coverage,
)
from timm_mix.train.evaluate.held_back import held_back
from timm_mix.train.evaluate.outputs import Network, PixelDataset, collect, create_loader
from timm_mix.train.evaluate.per_class import per_class, write_classes
from timm_mix.train.evaluate.robustness import fgsm_scores, figures_of, sample_scores
from timm_mix.train.evaluate.scoring import (
    LABEL_PROTOCOL,
    PROTOCOL,
    agreement,
    confusion,
    diversity,
    score,
    score_labels,
)
from timm_mix.train.evaluate.settings import Measured, ValidateConfig
from timm_mix.train.evaluate.subject import Subject, fold, open_images, open_subject, pixel_transform
from timm_mix.train.files import write_json, write_whole
from timm_mix.train.loop.guards import check_sigmoids
from timm_mix.train.loop.results import describe_machine

__all__ = ["KIND", "Evaluation"]

THROUGHPUT_SECONDS = 1.0
KIND = "validation"  # of results.json, told from that of a training run


class Evaluation:
    """One evaluation: its images, its network, and the figures, section by section.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=10), "my_model")
    >>> config = ValidateConfig.of(model="my_model", dataset="digits", output="results")
    >>> evaluation = Evaluation(config, Accelerator(cpu=True))  # evaluation.run() then writes results/results.json
    >>> len(evaluation.images), evaluation.network.whole
    (360, 'ensemble_logits')
    """

    def __init__(self, config: ValidateConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.images, self.class_names = open_images(config.images, config.model)
        self.multi_label = is_multi_label(self.images)
        self.subject: Subject = open_subject(config.model, self.class_names)
        if self.multi_label:
            _check_multi_label(config.measured, self.subject)
        self.images.mode = self.subject.mode  # type: ignore[attr-defined]
        if isinstance(self.subject.mode, int) and (config.measured.corruptions or config.measured.corruptions_dir):
            raise UsageError(f"corruptions are for 1 or 3 channels, the model takes {self.subject.mode}: drop them")
        self.network = Network(
            self.subject.model,
            self.subject.data_config,
            accelerator,
            folded=fold(self.subject) if config.measured.fold else None,
            channels_last=config.model.channels_last,
            multi_label=self.multi_label,
        )
        self.to_pixels = pixel_transform(self.subject)
        self.folder = Path(config.measured.output)

    def run(self) -> dict[str, Any]:
        """All sections; the main process alone computes figures, draws and writes."""
        begun = time.perf_counter()
        outputs, target = self._over(self.images, lambda pixels, _: self.network.outputs(pixels), "evaluate")
        seconds = time.perf_counter() - begun
        attacked = self._attacked() if self.config.measured.robustness else None
        corrupted = self._corrupted()
        if not self.accelerator.is_main_process:
            return {}
        content = {**self._about(len(target)), "figures": self._figures(outputs, target)}
        classes = self.class_names or [str(label) for label in range(self.subject.num_classes)]
        content["classes"] = per_class(self.network.predictor(outputs, self.network.whole), target, classes)
        if self.network.members is not None and not self.multi_label:
            content["diversity"] = diversity(outputs[:, : self.network.members], target)
        content["throughput"] = {**self._throughput(), "pass_over_the_images_seconds": round(seconds, 3)}
        content |= {"fgsm": attacked} if attacked else {}
        content |= {"corruptions": corrupted} if corrupted else {}
        if self.config.measured.save_predictions:
            tensors = {"logits": outputs, "target": target}
            write_whole(self.folder / "predictions.safetensors", lambda stream: stream.write(to_safetensors(tensors)))
        if can_draw():
            self._draw(outputs, target, content, classes)
        else:
            print(NO_MATPLOTLIB, file=sys.stderr)
        write_classes(self.folder / "classes.csv", content["classes"])
        write_json(self.folder / "results.json", content)
        _print_table(content)
        return content

    def _over(
        self, images: Dataset, step: Callable[[Tensor, Tensor], Tensor], what: str, corruption: Corruption | None = None
    ) -> tuple[Tensor, Tensor]:
        """`step` over a data set: its outputs and the labels, in the data set's order."""
        pixels = PixelDataset(images, self.to_pixels, self.subject.mode, corruption)
        loader = create_loader(pixels, self.config.images.batch_size, self.config.images.workers, self.accelerator)
        return collect(step, loader, self.accelerator, self.subject.num_classes, what)

    def _attacked(self) -> dict[str, Any]:
        epsilons = self.config.measured.epsilons
        step = partial(fgsm_scores, self.network, epsilons=[epsilon / 255 for epsilon in epsilons])
        scores, _ = self._over(self.images, step, "FGSM")
        by_size = [figures_of(scores[:, i], self.network.names) for i in range(len(epsilons))]
        return {
            "attack": "one step per pixel value of size eps / 255 before normalisation, clipped to [0, 1], up the "
            f"gradient of the NLL of {self.network.whole}, in float32",
            "eps": list(epsilons),
            "figures": _columns(by_size, self.network.names),
        }

    def _corrupted(self) -> dict[str, Any] | None:
        wanted, families = self.config.measured, {}
        names = families_in(Path(wanted.corruptions_dir)) if wanted.corruptions_dir else wanted.corruptions
        step = partial(sample_scores, self.network)
        for name in names:
            by_severity = []
            for severity in SEVERITIES:
                what = f"{name} {severity}"
                if wanted.corruptions_dir:
                    scores, _ = self._over(NpyCorruption(Path(wanted.corruptions_dir), name, severity), step, what)
                else:
                    scores, _ = self._over(self.images, step, what, Corruption(name, severity, wanted.seed))
                by_severity.append(figures_of(scores, self.network.names))
            families[name] = _columns(by_severity, self.network.names)
        if not families:
            return None
        mean = {
            name: {
                key: sum(sum(rows[name][key]) for rows in families.values()) / (len(families) * len(SEVERITIES))
                for key in ("top1", "nll", "ece")
            }
            for name in self.network.names
        }
        source = (
            wanted.corruptions_dir
            or "made here (timm_mix/train/evaluate/corruptions.py), not comparable with published -C sets"
        )
        return {"source": source, "severities": list(SEVERITIES), "mean": mean, "families": families}

    def _figures(self, outputs: Tensor, target: Tensor) -> dict[str, Any]:
        scored: Any = score_labels if self.multi_label else partial(score, seed=self.config.measured.seed)
        return {
            name: dataclasses.asdict(scored(self.network.predictor(outputs, name), target))
            for name in self.network.names
        }

    def _about(self, count: int) -> dict[str, Any]:
        subject, config = self.subject, self.config
        held = held_back(config.images, config.model)
        machine = describe_machine(self.accelerator.device, self.accelerator.num_processes)
        return {
            "kind": KIND,
            "command": sys.argv,
            "config": config.flat(),
            **machine,
            "model": {
                "name": subject.settings.model.name,
                "architecture": subject.architecture,
                "weights": subject.weights,
                "parameters": sum(p.numel() for p in subject.model.parameters()),
                "members": self.network.members,
                "prediction": self.network.whole,
            },
            "data": {
                "images": count,
                "held_back": None if held is None else dataclasses.asdict(held),
                "classes": subject.num_classes,
                "transform": subject.settings.augment.aug,
                **subject.data_config,
            },
            "protocol": {**(LABEL_PROTOCOL if self.multi_label else PROTOCOL), "classes": f"of {self.network.whole}"},
        }

    def _throughput(self) -> dict[str, Any]:
        """Images per second of the forward pass alone, on this machine, in one process."""
        size = (self.config.images.batch_size, *self.subject.data_config["input_size"])
        images = self.network.normalised(torch.rand(size, device=self.accelerator.device))
        nets = {self.network.whole: self.network.model, "folded": self.network.folded}
        rates = {name: self._rate(net, images) for name, net in nets.items() if net is not None}
        return {"what": "forward passes of one process of this machine", "batch_size": size[0], **rates}

    @torch.no_grad()
    def _rate(self, net: torch.nn.Module, images: Tensor) -> dict[str, float]:
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < 4 or time.perf_counter() - begun < THROUGHPUT_SECONDS:
            start = time.perf_counter()
            with self.accelerator.autocast():
                net(images)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        median = sorted(times[1:])[len(times[1:]) // 2]  # the first one warms up
        return {"images_per_second": round(len(images) / median, 1), "passes": len(times) - 1}

    def _draw(self, outputs: Tensor, target: Tensor, content: dict[str, Any], classes: list[str]) -> None:
        whole, title = self.network.whole, self.subject.architecture
        if self.multi_label:
            logits_of = {name: self.network.predictor(outputs, name) for name in self.network.names}
            plot_precision_recall(self.folder / "precision_recall.png", logits_of, target, whole, title)
            return
        logits = self.network.predictor(outputs, whole)
        panels = {}
        calibrated, _ = cross_fit_temperature(logits, target, seed=self.config.measured.seed)
        figures = content["figures"][whole]
        for name, z, ece in (
            ("as it is", logits, figures["ece"]),
            ("with temperature", calibrated, figures["ece_calibrated"]),
        ):
            confidence, predicted = z.softmax(-1).max(-1)
            panels[name] = calibration_bins(confidence, predicted == target), ece
        plot_reliability(self.folder / "reliability.png", panels, f"{title}\n{whole}")

        curves, predictions = {}, []
        for name in self.network.names:
            confidence, predicted = self.network.predictor(outputs, name).softmax(-1).max(-1)
            predictions.append(predicted)
            curves[name] = risk_coverage(confidence, predicted == target)
        plot_risk_coverage(self.folder / "risk_coverage.png", curves, whole, title)
        matrices = agreement(predictions), confusion(logits, target)
        plot_members(self.folder / "members.png", self.network.names, *matrices, classes, whole)

        clean = {name: row["top1"] for name, row in content["figures"].items()}
        if "fgsm" in content:
            fgsm = content["fgsm"]
            rows = {name: [clean[name], *fgsm["figures"][name]["top1"]] for name in self.network.names}
            plot_fgsm(self.folder / "fgsm.png", [0, *fgsm["eps"]], rows, whole, title)
        if "corruptions" in content:
            families = content["corruptions"]["families"]
            top1 = {name: {key: row["top1"] for key, row in rows.items()} for name, rows in families.items()}
            plot_corruptions(self.folder / "corruptions.png", top1, clean, whole, title)


def _check_multi_label(wanted: Measured, subject: Subject) -> None:
    check_sigmoids(subject.model, subject.settings.model.name)
    given = {"robustness": wanted.robustness, "corruptions": wanted.corruptions or wanted.corruptions_dir}
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} is for one label per image, the table lists several: drop it")


def _columns(rows: list[dict[str, dict[str, float]]], names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Predictor -> figure -> one value per row."""
    return {name: {key: [row[name][key] for row in rows] for key in rows[0][name]} for name in names}


def _print_table(content: dict[str, Any]) -> None:
    columns = {"top-1 %": "top1", "top-5 %": "top5", "NLL": "nll", "NLL_c": "nll_calibrated", "ECE": "ece"}
    columns |= {"ECE_c": "ece_calibrated", "Brier": "brier", "AURC": "aurc"}
    if "map" in next(iter(content["figures"].values())):
        columns = {"mAP %": "map", "micro F1 %": "micro_f1", "macro F1 %": "macro_f1", "BCE": "bce"}
    about = f"{content['model']['name']}: {content['data']['images']} images, {content['data']['classes']} classes"
    if held := content["data"]["held_back"]:
        about += f" (of a split by val_fraction {held['fraction']:g}, seed {held['seed']})"
    print(f"{about}\n{'':18s}" + "".join(f"{title:>11s}" for title in columns))
    for name, row in content["figures"].items():
        cells = (f"{row[key]:11.2f}" if title.endswith("%") else f"{row[key]:11.4f}" for title, key in columns.items())
        print(f"{name:18s}" + "".join(cells))
    if content.get("diversity"):
        both = {key: content["diversity"][key] for key in ("disagreement", "ratio_error", "kl")}
        print("diversity: " + ", ".join(f"{key} {'-' if v is None else f'{v:.4f}'}" for key, v in both.items()))
    for name, rate in content["throughput"].items():
        if isinstance(rate, dict):
            print(f"{name}: {rate['images_per_second']:.0f} images/s (forward, this machine)")
