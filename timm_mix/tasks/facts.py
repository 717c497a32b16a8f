"""What a training task says of itself, so that trainer, drop_in, cards and tests need not know it by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Example", "Facts", "Method", "Work", "method_of"]


@dataclass(frozen=True)
class Method:
    """What a model card says of a method; the cards in model_cards/methods/ say it at length, a test compares them.

    card: its file in model_cards/methods/. arxiv: number of the paper. source: its published code, as load_official
    names it.

    >>> Method(title="Manifold Mixup", tag="manifold-mixup", about="Features were mixed.", arxiv="1806.05236").arxiv
    '1806.05236'
    """

    title: str
    tag: str
    about: str
    card: str | None = None
    arxiv: str | None = None
    bibtex: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Example:
    """The smallest settings that exercise a task.

    model: the wrapper with members that it needs around a network, such as `mixmo`; None: any timm model will do.
    model_settings: of that wrapper.   settings: of the task.
    still: ends of the names of parameters that its loss does not depend on.

    >>> Example("mixmo", {"members": 2}, {"block": "cut"}).settings
    {'block': 'cut'}
    """

    model: str | None = None
    model_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is true of a task whatever its settings are.

    method: for the cards; None: the task's name and the first line of its docstring.
    member_views: every member is shown its own view of an image, unless it is told otherwise.
    soft_labels: the criterion is called with soft labels, whatever the data have.
    own_block: what it trains has, as `block`, a part beside the network, which may have a learning rate of its own.
    member_parallel: it takes `member_group` and runs with one member per process.
    ends_mixing: its step asks `self.mixes`, so that it can take `off_epoch`.
    example: what the tests take it with.

    >>> facts = Facts(soft_labels=True)  # of a task of your own, as its class attribute `facts`
    >>> facts.soft_labels, facts.member_views
    (True, False)
    """

    method: Method | None = None
    member_views: bool = False
    soft_labels: bool = False
    own_block: bool = False
    member_parallel: bool = False
    ends_mixing: bool = False
    example: Example = Example()


@dataclass(frozen=True)
class Work:
    """What a step costs, on average.

    passes: of the network, forward and backward; 1 is plain training.
    forwards: what else runs, as (times per step, one run of it for one image).

    >>> Work(passes=2.0).passes  # two passes of the network per step
    2.0
    """

    passes: float = 1.0
    forwards: tuple[tuple[float, Callable[[], Any]], ...] = ()


def method_of(name: str, task: Any) -> Method:
    """What a card says of a task: its facts' method, or else what its docstring opens with.

    >>> from timm_mix.tasks import TASKS
    >>> method_of("mixmo", TASKS["mixmo"]).arxiv
    '2103.06132'
    """
    about = (inspect.getdoc(task) or "A training task.").splitlines()[0]
    return task.facts.method or Method(title=name, tag=name, about=about)
