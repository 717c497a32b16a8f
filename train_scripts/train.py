"""In a checkout the same as `timm-mix train`: see `timm-mix train --help`."""

from timm_mix.commands.train import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
