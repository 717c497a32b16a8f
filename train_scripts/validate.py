"""In a checkout the same as `timm-mix validate`: see `timm-mix validate --help`."""

from timm_mix.commands.validate import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
