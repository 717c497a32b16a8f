"""What a model card says of each method: every training task says it of itself, here is plain training."""

from collections.abc import Iterator, Mapping

from timm_mix.registry import one_of
from timm_mix.tasks import PLAIN, TASKS, Method, method_of

__all__ = ["METHODS", "Method", "find_method", "method_of_source"]

BASELINE = Method(
    title="plain training",
    tag="baseline",
    about="Trained with cross-entropy; recipe.yaml says what was mixed.",
)


class _Methods(Mapping[str, Method]):
    """By the name of the training task: what is registered, and plain training."""

    def __getitem__(self, name: str) -> Method:
        return BASELINE if name == PLAIN else method_of(name, TASKS[name])

    def __iter__(self) -> Iterator[str]:
        return iter((*TASKS, PLAIN))

    def __len__(self) -> int:
        return len(TASKS) + 1


METHODS: Mapping[str, Method] = _Methods()


def find_method(name: object) -> Method:
    """The method of a task.

    Raises:
        ValueError: nobody has registered such a task.

    >>> find_method("mixmo").title, find_method("classification").tag
    ('MixMo', 'baseline')
    """
    return METHODS[one_of("method (a task that is registered)", name, METHODS)]


def method_of_source(source: str) -> Method:
    """The method of a published code.

    Raises:
        ValueError: a source that nobody published.

    >>> method_of_source("splitnet").arxiv
    '2011.14660'
    """
    published = {method.source: method for method in METHODS.values() if method.source is not None}
    return published[one_of("source", source, published)]
