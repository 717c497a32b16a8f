"""In a checkout the same as `timm-mix push`: see `timm-mix push --help`."""

from timm_mix.commands.push import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
