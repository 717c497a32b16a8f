"""Settings of a run: recipes (yaml) and flags."""
