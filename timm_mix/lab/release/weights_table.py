"""The table of model_cards/weights/README.md: what the results.json of every folder there says."""

import json
from pathlib import Path
from typing import Any

from timm_mix.card import RELEASE
from timm_mix.card.table import markdown_table
from timm_mix.train.files import write_whole

__all__ = ["update_table", "weights_table"]

_MARK = "<!-- the table below is written by train_scripts/release.py -->\n"
_HEADER = ["name", "method", "trained on", "epochs", "prediction", "top-1 (%)", "MB"]


def weights_table(folder: Path) -> str:
    """One row per release in `folder`, by data set, method and name."""
    found = []
    for path in folder.glob("*/results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.get("kind") == RELEASE:
            found.append(results)
    found.sort(key=lambda results: (results["data"]["name"], results["method"], results["name"]))
    return markdown_table(_HEADER, map(_row, found), align="lllrlrr") + "\n"


def update_table(folder: Path) -> None:
    """Write what stands below the mark in the folder's README.md anew; without README.md or mark nothing is done."""
    readme = folder / "README.md"
    if not readme.is_file():
        return
    text, mark, _ = readme.read_text(encoding="utf-8").partition(_MARK)
    if mark:
        content = f"{text}{mark}\n{weights_table(folder)}".encode()
        write_whole(readme, lambda stream: stream.write(content))


def _row(results: dict[str, Any]) -> tuple[object, ...]:
    return (
        *(f"[{results['name']}]({results['name']})", results["method"], results["data"]["name"]),
        *(results["training"]["epochs"], results["prediction"].replace("_", " ")),
        *(f"{results['reproduce']['top1']:.2f}", f"{results['weights']['bytes'] / 1e6:.1f}"),
    )
