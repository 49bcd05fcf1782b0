"""Progress bars of sampling, whose remaining time is that of what has been sampled so far."""

from __future__ import annotations

from tqdm import tqdm
from typing_extensions import Self

from taming.sampling.engine import Progress


class ImageBar:
    """Over images, with the tokens of the batch that is being sampled; a context, and `OnStep`."""

    def __init__(self, images: int, *, disable: bool = False) -> None:
        # Without images there is nothing to wait for.
        self.bar = tqdm(total=images, unit="image", miniters=0, disable=disable or not images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, progress: Progress) -> None:
        self.bar.set_postfix_str(f"token {progress.done}/{progress.total}", refresh=False)
        self.bar.update(0)

    def image(self, count: int = 1) -> None:
        """An image is finished, or several."""
        self.bar.update(count)


class TokenBar(ImageBar):
    """Over the tokens that are sampled, of all images: where a single one may take long."""

    def __init__(self, images: int, tokens: int, *, disable: bool = False) -> None:
        self.bar = tqdm(total=images * tokens, unit="token", disable=disable or not images)
        self.total, self.tokens, self.finished = images * tokens, tokens, 0

    def __call__(self, progress: Progress) -> None:
        self._show(self.finished * self.tokens + progress.done * len(progress.indices))

    def image(self, count: int = 1) -> None:
        self.finished += count
        self._show(max(self.bar.n, self.finished * self.tokens))

    def _show(self, done: int) -> None:
        self.bar.update(min(done, self.total) - self.bar.n)
