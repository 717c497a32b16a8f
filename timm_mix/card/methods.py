"""What a model card says of each method; the cards in model_cards/methods/ say it at length, a test compares them."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A method, by the name of its training task.

    card: its file in model_cards/methods/. arxiv: number of the paper.
    """

    title: str
    tag: str
    about: str
    card: str | None = None
    arxiv: str | None = None
    bibtex: str | None = None


METHODS: Mapping[str, Method] = {
    "mixmo": Method(
        title="MixMo",
        tag="mixmo",
        about="Each member has its own first convolution and its own head, the rest is one shared network. In training "
        "it looks at several mixed images at once, afterwards all members look at the same one and are averaged.",
        card="mixmo.md",
        arxiv="2103.06132",
        bibtex=r"""@inproceedings{rame2021mixmo,
  title     = {{MixMo}: Mixing Multiple Inputs for Multiple Outputs via Deep Subnetworks},
  author    = {Ram{\'e}, Alexandre and Sun, R{\'e}my and Cord, Matthieu},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021},
  eprint    = {2103.06132},
  archivePrefix = {arXiv},
}""",
    ),
    "cotraining": Method(
        title="SplitNet with co-training",
        tag="splitnet",
        about="One wide network, divided into narrow ones that together cost about as much. Each learns from its own "
        "views of the images and from the other parts; their logits are averaged.",
        card="splitnet.md",
        arxiv="2011.14660",
        bibtex="""@article{zhao2020divide,
  title   = {Towards Better Accuracy-efficiency Trade-offs: Divide and Co-training},
  author  = {Zhao, Shuai and Zhou, Liguang and Wang, Wenxiao and Cai, Deng and Lam, Tin Lun and Xu, Yangsheng},
  journal = {arXiv preprint arXiv:2011.14660},
  year    = {2020},
}""",
    ),
    "recursivemix": Method(
        title="RecursiveMix",
        tag="recursivemix",
        about="In training a box of every image showed the resized input of the step before, with its label. What is "
        "left is the plain network.",
        card="recursivemix.md",
        arxiv="2203.06844",
        bibtex="""@inproceedings{yang2022recursivemix,
  title     = {RecursiveMix: Mixed Learning with History},
  author    = {Yang, Lingfeng and Li, Xiang and Zhao, Borui and Song, Renjie and Yang, Jian},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
}""",
    ),
    "automix": Method(
        title="AutoMix",
        tag="automix",
        about="In training a small network learned where to mix two images, from how well they were recognised "
        "afterwards. What is left is the momentum copy of the classifier, a plain network.",
        card="automix.md",
        arxiv="2103.13027",
        bibtex="""@inproceedings{liu2022automix,
  title     = {AutoMix: Unveiling the Power of Mixup for Stronger Classifiers},
  author    = {Liu, Zicheng and Li, Siyuan and Wu, Di and Liu, Zihan and Chen, Zhiyuan and Wu, Lirong and Li, Stan Z.},
  booktitle = {European Conference on Computer Vision},
  year      = {2022},
}""",
    ),
    "manifoldmixup": Method(
        title="Manifold Mixup",
        tag="manifold-mixup",
        about="In training the features of two images were mixed at a stage drawn for each batch. What is left is the "
        "plain network.",
        arxiv="1806.05236",
    ),
    "classification": Method(
        title="plain training",
        tag="baseline",
        about="Trained with cross-entropy; recipe.yaml says what was mixed.",
    ),
}
