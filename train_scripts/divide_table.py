"""In a checkout the same as `timm-mix table`: see `timm-mix table --help`."""

from timm_mix.commands.table import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
