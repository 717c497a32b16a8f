"""In a checkout the same as `timm-mix release`: see `timm-mix release --help`."""

from timm_mix.commands.release import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
