"""Where pretrained weights lie and what they know: those that ship with the package, and those of the backbones."""
