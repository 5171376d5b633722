"""Containers of a user's model, back as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def kept(objects: Iterable[Any]) -> Iterator[None]:
    """Give objects back the attributes that they have now, with what is in their dicts, lists and sets."""
    with ExitStack() as stack:
        for owner in objects:
            attributes = vars(owner)
            for held in attributes.values():
                kind = next((kind for kind in (dict, list, set) if isinstance(held, kind)), None)
                if kind is not None:
                    stack.callback(restore, held, kind(held))
            stack.callback(restore, attributes, dict(attributes))
        yield


def restore(container: Any, saved: Any) -> None:
    """Give a dict, list or set its old content back, where that has changed."""
    if isinstance(container, dict):
        same = len(container) == len(saved) and all(a is b for a, b in zip(container, saved, strict=True))
        same = same and all(container[key] is saved[key] for key in saved)
    elif isinstance(container, list):
        same = len(container) == len(saved) and all(a is b for a, b in zip(container, saved, strict=True))
    else:
        same = container == saved
    if not same:
        container.clear()
        container.extend(saved) if isinstance(container, list) else container.update(saved)
