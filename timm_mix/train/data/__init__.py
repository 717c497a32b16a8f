"""Data sets, transforms and loaders whose chance is a function of seed and place."""
