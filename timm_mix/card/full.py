"""Model cards, generated from what lies in a folder: every figure comes from its results.json, none is typed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import is_model, model_entrypoint

from timm_mix.card.methods import Method, find_method, method_of_source
from timm_mix.card.table import markdown_table
from timm_mix.models import is_declared

__all__ = [
    "LICENCES",
    "RELEASE",
    "THIS_FOLDER",
    "SourceFacts",
    "file_hash",
    "make_card",
    "make_converted_card",
]

THIS_FOLDER = "local-dir:PATH/OF/THIS/FOLDER"  # in a card that does not know yet where it will be published
RELEASE = "release"  # kind of the results.json that train_scripts/release.py writes
# published code -> licence of the weights that its authors released, where they state one
LICENCES: Mapping[str, str] = {"splitnet": "cc-by-nc-4.0"}
_DATA_NAMES = {"digits": "scikit-learn's handwritten digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # where the Hub has them
_PREDICTORS = {
    "model": "the network",
    "ensemble_logits": "ensemble, mean of logits",
    "ensemble_softmax": "ensemble, mean of probabilities",
    "ensemble_max": "ensemble, maximum of logits",
    "folded": "folded into one plain network",
}
# figure -> (title, type for the Hub, digits)
_METRICS = {
    "top1": ("top-1 %", "accuracy", 2),
    "top5": ("top-5 %", "top5_accuracy", 2),
    "nll": ("NLL", "nll", 4),
    "ece": ("ECE", "expected_calibration_error", 4),
}


@dataclass(frozen=True)
class SourceFacts:
    """Where a converted checkpoint comes from; sha256 is the checkpoint's.

    >>> SourceFacts("mixmo", "wideresnet_28_10", "checkpoint_final.ckpt", sha256="9c1d...", license="unknown").arch
    'wideresnet_28_10'
    """

    source: str
    arch: str
    file: str
    sha256: str
    license: str


def make_card(folder: str | Path, *, repo_id: str | None = None) -> ModelCard:
    """The card of a folder that train_scripts/release.py wrote: from its results.json and its config.json.

    Args:
        repo_id: where it is published; default: the place that results.json names.
    Raises:
        ValueError: no such folder, results of something else or of a method that is not registered, or weights that the
            figures were not measured with.

    >>> from timm_mix.models import shipped_folder
    >>> card = make_card(shipped_folder() / "wrn16_2.mixmo_m2_digits", repo_id="me/digits")
    >>> card.data.library_name, 'timm.create_model("hf-hub:me/digits", pretrained=True)' in card.text
    ('timm', True)
    """
    folder = Path(folder)
    results = _read_results(folder)
    arch = _read_json(folder / "config.json")["architecture"]
    method = find_method(results["method"])
    repo_id = repo_id or results["hub_id"]
    sections = {
        "": _about(results, arch, method),
        "How to use it": _usage(results, arch, repo_id),
        "Figures": _figures(results),
        "Training": _training(results),
        "Limits": _limits(results),
        "Licence": f"{results['license']} (the weights).",
        "Who to cite": _citation(method),
    }
    return _card(_metadata(results, method), results["name"], sections)


def make_converted_card(folder: str | Path, facts: SourceFacts) -> ModelCard:
    """The card of a folder that train_scripts/convert.py wrote: where the weights come from, and their licence.

    Raises:
        ValueError: no such folder, or a source that nobody published.

    >>> folder = Path("converted")
    >>> folder.mkdir()
    >>> written = (folder / "config.json").write_text('{"architecture": "wrn28_10", "num_classes": 100}')
    >>> facts = SourceFacts("mixmo", "wideresnet_28_10", "checkpoint_final.ckpt", sha256="9c1d...", license="unknown")
    >>> make_converted_card(folder, facts).text.splitlines()[1]
    '# wrn28_10, converted'
    """
    config = _read_json(Path(folder) / "config.json")
    method, arch = method_of_source(facts.source), config["architecture"]
    data = ModelCardData(
        license=facts.license, library_name="timm", pipeline_tag="image-classification", tags=_tags(method, "converted")
    )
    about = (
        f"`{arch}` with {config['num_classes']} classes: a checkpoint of the published code of {method.title} "
        f"([arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv})), converted to timm's names by timm_mix."
    )
    source = (
        f"- published code: `{facts.source}`, its network `{facts.arch}`\n- checkpoint: `{facts.file}`, sha256 "
        f"`{facts.sha256}`\n- every tensor of the network has its place here and its value is unchanged"
    )
    limits = (
        "The conversion checks names and shapes. The accuracy of these weights has not been measured, and mean, "
        "standard deviation and image size in config.json are the architecture's own, not read from the checkpoint: "
        "measure them with `train_scripts/validate.py` before you rely on them."
    )
    licence = f"{facts.license}: conversion changes nothing about the licence of the weights."
    use = _code(f'{_imports(arch)}\n\nmodel = timm.create_model("{THIS_FOLDER}", pretrained=True)')
    sections = {"": about, "How to use it": use, "Source": source, "What was not verified": limits}
    sections |= {"Licence": licence, "Who to cite": _citation(method)}
    return _card(data, f"{arch}, converted", sections)


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.

    >>> written = Path("weights").write_bytes(b"abc")
    >>> file_hash(Path("weights"))
    'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_results(folder: Path) -> dict[str, Any]:
    results = _read_json(folder / "results.json")
    if results.get("kind") != RELEASE:
        raise ValueError(
            f"{folder / 'results.json'} must be of kind {RELEASE!r}, got {results.get('kind')!r}; make the folder with "
            "train_scripts/release.py"
        )
    weights, stated = folder / results["weights"]["file"], results["weights"]["sha256"]
    if not weights.is_file() or file_hash(weights) != stated:
        raise ValueError(f"the figures of {folder} were measured with other weights than {weights}; release it anew")
    return results


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"a card needs {path}, which cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def _card(data: ModelCardData, title: str, sections: Mapping[str, str]) -> ModelCard:
    parts = [f"# {title}"]
    parts += [f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _tags(method: Method, *more: str) -> list[str]:
    return ["image-classification", "timm", "timm_mix", method.tag, *more]


def _metadata(results: Mapping[str, Any], method: Method) -> ModelCardData:
    data = results["data"]
    first = results["prediction"]  # the model's own prediction leads
    names = [first, *(name for name in results["figures"] if name != first)]
    found = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=_HUB_DATASETS.get(data["name"], data["name"]),
            dataset_name=_data_name(data["name"]),
            dataset_split=data["split"],
            metric_type=kind,
            metric_name=f"{title} ({_predictor(name)})",
            metric_value=round(results["figures"][name][key], digits),
        )
        for name in names
        for key, (title, kind, digits) in _METRICS.items()
    ]
    return ModelCardData(
        license=results["license"],
        library_name="timm",
        pipeline_tag="image-classification",
        tags=_tags(method),
        datasets=[_HUB_DATASETS.get(data["name"], data["name"])],
        metrics=["accuracy"],
        model_name=results["name"],
        eval_results=found,
    )


def _data_name(name: str) -> str:
    return _DATA_NAMES.get(name, name)


def _predictor(name: str) -> str:
    return _PREDICTORS.get(name) or name.replace("_", " ")


def _about(results: Mapping[str, Any], arch: str, method: Method) -> str:
    data, weights = results["data"], results["weights"]
    size = "x".join(map(str, data["input_size"][1:]))
    paper = f" ([arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv}))" if method.arxiv else ""
    folded = ""
    if results["folded_from"]:
        folded = (
            f" It was `{results['folded_from']}`: the first convolutions are summed, the heads averaged, the logits "
            "are the ensemble's up to float16's rounding."
        )
    return (
        f"`{arch}`, {weights['parameters']:,} parameters, trained with {method.title}{paper} on "
        f"{data['train_images']:,} images of {_data_name(data['name'])} ({data['classes']} classes, {size} pixels). "
        f"{method.about}{folded}"
    )


def _usage(results: Mapping[str, Any], arch: str, repo_id: str) -> str:
    members, data = results["members"], results["data"]
    channels, height, width = data["input_size"]
    mode = "L" if channels == 1 else "RGB"
    use = [
        "import PIL.Image\nimport torch\n",
        "transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))",
        f'x = transform(PIL.Image.new("{mode}", ({width}, {height})))[None]  # your image instead of this black one',
        "with torch.no_grad():",
        f"    logits = model(x)  # [1, {data['classes']}]",
    ]
    if members:
        use.append(f"    members = model(x, return_members=True)  # [1, {members}, {data['classes']}]")
    if "folded" in results["figures"]:
        use.append("plain = model.fold()  # one plain network with the same logits")
    hub = f'{_imports(arch)}\n\nmodel = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()'
    shipped = f'model = timm.create_model("{results["name"]}", pretrained=True).eval()'
    parts = [_code(hub)]
    if is_declared(results["name"]):
        parts += ["or, offline, from the installed package,", _code(f"{_imports(arch)}\n\n{shipped}")]
    parts += ["and then", _code("\n".join(use))]
    own = "Without `import timm_mix` timm does not know the architecture. " if _is_ours(arch) else ""
    parts.append(f"{own}`num_classes=`, `in_chans=` and `features_only=True` work as with any timm model.")
    return "\n\n".join(parts)


def _code(lines: str) -> str:
    return f"```python\n{lines}\n```"


def _imports(arch: str) -> str:
    return "import timm\nimport timm_mix  # registers the architecture" if _is_ours(arch) else "import timm"


def _is_ours(arch: str) -> bool:
    return is_model(arch) and model_entrypoint(arch).__module__.startswith("timm_mix.")


def _figures(results: Mapping[str, Any]) -> str:
    data = results["data"]
    rows = []
    for name, row in results["figures"].items():
        cells = [f"{row[key]:.{digits}f}" for key, (_, _, digits) in _METRICS.items()]
        mark = "**" if name == results["prediction"] and len(results["figures"]) > 1 else ""
        rows.append([f"{mark}{_predictor(name)}{mark}", *cells])
    table = markdown_table(["", *(title for title, _, _ in _METRICS.values())], rows)
    bold = " What `model(x)` returns is in bold." if len(results["figures"]) > 1 else ""
    return (
        f"{data['images']:,} images, split `{data['split']}` of {_data_name(data['name'])}, measured with the float16 "
        f"weights of this folder in float32.{bold}\n\n{table}\n\nNLL in nats per image; ECE with 15 bins of equal "
        "width, 0 to 1. results.json holds these and more figures at full length. The line that gives them again:\n\n"
        f"```\n{results['reproduce']['command']}\n```"
    )


def _training(results: Mapping[str, Any]) -> str:
    training = results["training"]
    hardware, versions = training["hardware"], training["versions"]
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    where = f"{hardware['processes']} processes, {device}" if hardware["processes"] > 1 else device
    facts = [
        f"{training['epochs']} epochs, seed {training['seed']}, {training['seconds'] / 60:.1f} minutes on {where}",
        ", ".join(f"{name} {versions[name]}" for name in ("timm_mix", "timm", "torch") if name in versions)
        + f", Python {versions['python']}",
    ]
    for key, what in (("commit", "commit"), ("released_at", "trained before it recorded its commit; released at")):
        if training.get(key):
            facts.append(f"{what} {training[key]}")
            break
    listed = "\n".join(f"- {fact}" for fact in facts)
    return f"```\n{training['command']}\n```\n\n{listed}\n- recipe.yaml: every setting that differs from its default"


def _limits(results: Mapping[str, Any]) -> str:
    data, training = results["data"], results["training"]
    if training["export"] == "best":
        chosen = (
            f"The epoch was chosen on split `{data['split']}`, on which the figures are measured: they are optimistic."
        )
    else:
        chosen = f"Weights of the last epoch: no epoch was chosen on split `{data['split']}`."
    small = (
        f"- A small run ({training['epochs']} epochs, {data['train_images']:,} images): to try method and code with, "
        "neither the published setting nor a comparison of methods.\n"
    )
    return (
        f"{small if is_declared(results['name']) else ''}"
        f"- {chosen}\n- One run with one seed; no spread is known.\n"
        f"- It knows {_data_name(data['name'])} only; on other images its probabilities mean nothing."
    )


def _citation(method: Method) -> str:
    return f"```bibtex\n{method.bibtex}\n```" if method.bibtex else ""
