"""In a checkout the same as `timm-mix convert`: see `timm-mix convert --help`."""

from timm_mix.commands.convert import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
