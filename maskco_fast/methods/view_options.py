"""Options that replace settings of a method's own views."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import View, ViewConfig


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Crop and colour jitter of all of a method's views; None keeps each view's own."""

    area: tuple[float, float] | None = None
    """Range of the crop's area as a fraction of the image's, of every random resized crop."""
    jitter: tuple[float, float, float, float] | None = None
    """Strengths of brightness, contrast, saturation and hue, of every view with colour jitter."""

    def __post_init__(self) -> None:
        View(**self._chosen())  # which checks the ranges

    def _chosen(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def apply(self, views: ViewConfig, method: str) -> ViewConfig:
        """Return the views of `method` with these settings.

        InvalidInput for an option that none of the views reads, such as relative_loc's, which are
        no random resized crops.
        """
        result = views.views
        for name, value in self._chosen().items():
            reads, missing = _READERS[name]
            if not any(map(reads, result)):
                raise InvalidInput(
                    f"`views.{name}` is for methods with {missing}, and the views of {method} "
                    "have none: omit the option, or choose another --method."
                )
            result = tuple(
                dataclasses.replace(view, **{name: value}) if reads(view) else view
                for view in result
            )
        return dataclasses.replace(views, views=result)


_READERS: dict[str, tuple[Callable[[View], bool], str]] = {
    "area": (lambda view: view.short_side is None, "a random resized crop"),
    "jitter": (lambda view: view.jitter_probability > 0, "colour jitter"),
}
"""For each option: whether a view reads it, and the name of what such a view has."""
