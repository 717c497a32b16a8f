"""timm's own scripts, unmodified, with our names; its train script with one of our tasks or mixers in its seat.

    python -m timm_mix.drop_in --task mixmo --mix block=cut prob=0.5 path/to/train.py --model mixmo_resnet50_m2 ...
    python -m timm_mix.drop_in --mixer resizemix path/to/train.py --model resnet50 ...
    torchrun --nproc_per_node 2 -m timm_mix.drop_in --task cotraining path/to/train.py --model splitnet_resnet50_s2 ...
    python -m timm_mix.drop_in path/to/validate.py --model mixmo_resnet50_m2 --checkpoint model_best.pth.tar ...

The script runs as if it had been called itself, with the arguments that follow its path, and knows this package's
models; its checkpoints load with timm.create_model(..., checkpoint_path=).
"""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml

from timm_mix.drop_in.children import children_know_us
from timm_mix.drop_in.seat import DropInError, Order, Seat, one_line
from timm_mix.mixers import MIXERS
from timm_mix.own_methods import import_modules
from timm_mix.tasks import TASKS

__all__ = ["main", "parse", "run"]

SETTING = re.compile(r"[A-Za-z_]\w*=")
EPILOG = """
The training is as long as the script's schedule says, and the draws follow its --seed. The criterion is the script's
(--smoothing, --bce-loss, ...). timm's own --mixup and --cutmix, distillation and the JSD loss are refused.
Settings: those of the task or mixer (see its class in timm_mix.tasks and timm_mix.mixers), as yaml values, and
  seed=N        of the draws, instead of the script's
  views=V       {views}: views of every image, one per part of the network if it is not given; 1 shows all the same
  off_epoch=E   the epoch, from 0, in which mixing ends; the script's own --mixup-off-epoch E is heard as well
Without --task and --mixer the script knows the models of this package, and nothing else changes. So do python scripts
that it starts through subprocess (timm's bulk_runner.py), a task or mixer is for the script itself.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line says; a mistake on it is one line on stderr and exit status 2.

    >>> written = Path("train.py").write_text("import sys; print(sys.argv)")  # in the place of timm's script
    >>> main(["train.py", "--epochs", "3"])
    ['train.py', '--epochs', '3']
    """
    try:
        order, script, arguments = parse(sys.argv[1:] if argv is None else argv)
        run(order, script, arguments)
    except DropInError as error:
        if int(os.environ.get("RANK", "0")) == 0:  # under torchrun every process says the same
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(order: Order, script: str | Path, arguments: Sequence[str]) -> Seat:
    """Run `script` as __main__ with `arguments`; returns the seat, with the task in it.

    Raises:
        DropInError: no such script, a script or a timm without the seat, a task that does not fit the script's model.

    >>> written = Path("train.py").write_text("import sys; print(sys.argv)")
    >>> seat = run(Order(), "train.py", ["--epochs", "3"])
    ['train.py', '--epochs', '3']
    >>> seat.task is None  # no task or mixer was asked for
    True
    """
    if not Path(script).is_file():
        raise DropInError(f"no script {str(script)!r}: give the path of timm's train.py, or of another of its scripts")
    with Seat(order).taken() as seat, children_know_us(order.imports), _called_as(str(script), arguments):
        runpy.run_path(str(script), run_name="__main__")
        seat.check_taken()
    return seat


def parse(argv: Sequence[str]) -> tuple[Order, str, list[str]]:
    """Our arguments, the script, and the script's own.

    Raises:
        DropInError: an unknown task, mixer, setting or argument, or no script.

    >>> parse(["--task", "mixmo", "--mix", "block=cut", "prob=0.5", "train.py", "--epochs", "3"])
    (Order(task='mixmo', mixer=None, settings={'block': 'cut', 'prob': 0.5}), 'train.py', ['--epochs', '3'])
    """
    place = _place_of_script(argv)
    given = _parser().parse_args(argv[:place])
    with one_line():
        import_modules(given.imports)
    if given.task and given.mixer:
        raise DropInError("give --task or --mixer, not both")
    order = Order(given.task, given.mixer, _settings(given.mix), tuple(given.imports))
    if place == len(argv):
        raise DropInError(
            "wanted the path of a script such as timm's train.py, got none; see python -m timm_mix.drop_in --help"
        )
    return order, argv[place], list(argv[place + 1 :])


def _place_of_script(argv: Sequence[str]) -> int:
    """The first argument that is no flag, no flag's value and no setting."""
    for place, argument in enumerate(argv):
        is_value = place > 0 and argv[place - 1] in ("--task", "--mixer", "--import")
        if not (is_value or argument.startswith("-") or SETTING.match(argument)):
            return place
    return len(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DropInError(f"{message}; see python -m timm_mix.drop_in --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m timm_mix.drop_in",
        usage="%(prog)s [--import MODULE] [--task NAME | --mixer NAME] [--mix KEY=VALUE ...] path/to/script.py [...]",
        description=__doc__,
        epilog=EPILOG.format(views=", ".join(name for name, task in TASKS.items() if task.facts.member_views)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of your own to import first: methods that it registers are known by name",
    )
    parser.add_argument("--task", metavar="NAME", help=f"a training task: {', '.join(TASKS)}")
    parser.add_argument("--mixer", metavar="NAME", help=f"a mixer of images and labels: {', '.join(MIXERS)}")
    parser.add_argument(
        "--mix", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the task or mixer"
    )
    return parser


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise DropInError(f"--mix takes key=value pairs, got {pair!r}")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # also thousands of digits or of brackets
            raise DropInError(f"--mix takes key=value pairs, {pair!r} has no yaml value") from None
        settings[key] = _number(value)
    return settings


def _number(value: Any) -> Any:
    """yaml 1.1 reads 1e-4 and inf as text; here they are numbers."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@contextmanager
def _called_as(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """sys.argv and sys.path as `python script arguments` has them."""
    argv, path = sys.argv, sys.path.copy()
    sys.argv = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):  # from Python 3.11 on
        sys.path[0] = str(Path(script).resolve().parent)
    try:
        yield
    finally:
        sys.argv = argv
        sys.path[:] = path


if __name__ == "__main__":
    main()
