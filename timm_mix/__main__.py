"""`timm-mix COMMAND ...`, and `python -m timm_mix COMMAND ...`."""

import sys
from collections.abc import Sequence

from timm_mix.version import __version__

__all__ = ["main"]

_HELP = """\
usage: timm-mix COMMAND [...]     (or: python -m timm_mix COMMAND; accelerate launch -m timm_mix COMMAND)

Train, fine-tune, evaluate and publish image classifiers with mixed inputs and divided networks.

{commands}

`timm-mix COMMAND --help` lists what a command takes. Start here, without a download:
  timm-mix train --config digits/mixmo_wrn16_2_m2
  timm-mix finetune --model resnet50 --data-dir IMAGES      IMAGES: train/ and val/ with a folder per class

For timm's own train.py: python -m timm_mix.drop_in --help"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the user is one line on stderr and exit status 2."""
    from timm_mix.commands import COMMANDS, main_of
    from timm_mix.train.errors import UsageError, nearest, run_script

    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        if not words or words[0] in ("-h", "--help", "help"):
            width = max(map(len, COMMANDS))
            print(_HELP.format(commands="\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())))
            return
        if words[0] == "--version":
            print(f"timm-mix {__version__}")
            return
        if words[0] not in COMMANDS:
            hint = nearest(words[0], COMMANDS) or "see timm-mix --help"
            raise UsageError(f"timm-mix has no command {words[0]!r}; {hint}")
        main_of(words[0])(words[1:])

    run_script(run)


if __name__ == "__main__":
    main()
