"""Model cards: from the figures of a results file to the text that lies beside the weights.

>>> from timm_mix.card import METHODS
>>> METHODS["mixmo"].title, METHODS["cotraining"].arxiv
('MixMo', '2011.14660')
"""

from timm_mix.card.full import (
    LICENCES,
    RELEASE,
    THIS_FOLDER,
    SourceFacts,
    file_hash,
    make_card,
    make_converted_card,
)
from timm_mix.card.licences import check_license
from timm_mix.card.methods import METHODS, Method

__all__ = [
    "LICENCES",
    "METHODS",
    "RELEASE",
    "THIS_FOLDER",
    "Method",
    "SourceFacts",
    "check_license",
    "file_hash",
    "make_card",
    "make_converted_card",
]
