"""In a checkout the same as `timm-mix finetune`: see `timm-mix finetune --help`."""

from timm_mix.commands.finetune import main
from timm_mix.train.errors import run_script

if __name__ == "__main__":
    run_script(main)
