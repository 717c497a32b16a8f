"""`python -m timm_mix.drop_in`."""

from timm_mix.drop_in.command import main

if __name__ == "__main__":
    main()
