"""Publish a trained model on the Hugging Face Hub.

    timm-mix push output/RUN OWNER/NAME --license apache-2.0 --dry-run
    timm-mix push output/RUN OWNER/NAME --license apache-2.0 --fold

FOLDER is a run's folder (its model/ is taken) or what save_pretrained wrote. Log in first (`hf auth login`), or set
HF_TOKEN, or give --token-file. The same command again finishes a push that was interrupted, and does nothing where
nothing has changed.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import disable_progress_bars

from timm_mix.hub import HubError, PushResult, push_to_hub
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.text import Parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> PushResult:
    arguments = _parse(argv)
    _set_loudness()
    settings = {
        "fold": arguments.fold,
        "private": True if arguments.private else None,
        "create_pr": arguments.pr,
        "revision": arguments.revision,
        "token": _token(arguments.token_file),
        "license": arguments.license,
        "dry_run": arguments.dry_run,
        "commit_message": arguments.message,
    }
    try:
        result = push_to_hub(_model_folder(arguments.folder), arguments.repo_id, **settings)
    except (ValueError, OSError, HubError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    for one in (result, result.folded):
        if one is not None:
            print(_report(one))
    return result


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Publish a trained model on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="a run's folder, or the model's")
    parser.add_argument("repo_id", help="OWNER/NAME; NAME alone belongs to the owner of the token")
    parser.add_argument("--fold", action="store_true", help="publish the folded network too, as REPO_ID-folded")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", help="the branch (default: main); made where it is missing")
    parser.add_argument("--license", help="the Hub's name of the licence, where the card names none: apache-2.0, ...")
    parser.add_argument("--message", help="the message of the commit, the title of the pull request")
    parser.add_argument("--token-file", type=Path, help="a file with the token (default: HF_TOKEN, `hf auth login`)")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, write nothing")
    return parser.parse_args(argv)


def _set_loudness() -> None:
    """Progress and waiting are for a terminal; elsewhere an error is to stand alone."""
    if sys.stderr.isatty():
        logging.getLogger("timm_mix.hub").addHandler(logging.StreamHandler())
        logging.getLogger("timm_mix.hub").setLevel(logging.INFO)
    else:
        disable_progress_bars()
        huggingface_hub.logging.set_verbosity_error()


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the token in {path}: {error}; give a text file that holds it alone") from error
    if not token or len(token.split()) > 1:
        raise UsageError(f"{path} must hold a token and nothing else; make one on the Hub's settings/tokens page")
    return token


def _model_folder(folder: Path) -> Path:
    inner = folder / "model"
    return inner if inner.is_dir() and not (folder / "config.json").exists() else folder


def _report(result: PushResult) -> str:
    head = f"{result.repo_id}{' (dry run, nothing is written)' if result.dry_run else ''}"
    lines = [f"{head}: {result.pull_request_url or result.commit_url or result.url}"]
    lines += [f"  {file.change:9s} {file.name} ({_size(file.size)})" for file in result.files]
    if result.ignored:
        lines.append(f"  stays at home: {', '.join(result.ignored)}")
    if result.unreached:
        lines.append(f"  not compared with the Hub: {result.unreached}")
    if not result.dry_run and not result.commit_url and not result.pull_request_url:
        lines.append("  nothing has changed, nothing is committed")
    return "\n".join([*lines, f"  load it: {result.reload}"])


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.2f} kB"
