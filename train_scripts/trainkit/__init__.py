"""Building blocks of the training scripts: data, transforms, samplers and what else `train.py` is made of."""
