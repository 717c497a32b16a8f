"""`python -m timm_mix.train ...`: the same as `timm-mix train ...`."""

from timm_mix.train.errors import run_script
from timm_mix.train.run import run
from timm_mix.train.settings.config import parse_config

if __name__ == "__main__":
    run_script(lambda: run(parse_config()))
