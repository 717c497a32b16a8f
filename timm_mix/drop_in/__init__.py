"""timm's own scripts with our names, task or mixer in its seat: `python -m timm_mix.drop_in SCRIPT ...`.

>>> from timm_mix.drop_in import parse
>>> order, script, arguments = parse(["--mixer", "resizemix", "train.py", "--model", "resnet50"])
>>> order.mixer, script, arguments
('resizemix', 'train.py', ['--model', 'resnet50'])
"""

from timm_mix.drop_in.command import main, parse, run
from timm_mix.drop_in.seat import DropInError, Order, Seat

__all__ = ["DropInError", "Order", "Seat", "main", "parse", "run"]
