"""In a checkout the same as `timm-mix benchmark`: see `timm-mix benchmark --help`."""

from timm_mix.commands.benchmark import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
