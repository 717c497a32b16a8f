"""In a checkout the same as `timm-mix compare`: see `timm-mix compare --help`."""

from timm_mix.commands.compare import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
