"""The trainer: recipes, data, loop, checkpoints, evaluation, fine-tuning. `import timm_mix` alone never imports it."""
