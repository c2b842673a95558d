"""A progress bar on stderr, by tqdm where it is installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    total: int, label: str, show: bool = True, done: int = 0
) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` steps; what it yields moves it by one, with a few words beside it.

    Without tqdm (the extra ``fractal-lib[train]``), or if ``show`` is False, nothing is shown.

    >>> with progress_bar(2, "two", show=False) as step:
    ...     step("first")
    """
    try:
        from tqdm import tqdm
    except ImportError:
        show = False
    if not show:
        yield lambda words="": None
        return
    with tqdm(total=total, initial=done, desc=label, leave=False) as bar:

        def step(words: str = "") -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update()

        yield step
