"""Labels: where a sample's label is read from, and the class list that makes numbers of labels.

A shard's index stores its labels as text, so that it serves any class list; `choose_classes` and
`set_targets` turn them into numbers when a dataset's table is made.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ...kernels.errors import InvalidInput, MaskCoError
from .index import ShardIndex, ShardLabels
from .names import redact_url

MAX_LABEL_BYTES = 1024
"""Longest label, bytes of UTF-8."""
MAX_JSON_BYTES = 1 << 20
"""Largest `.json` member that is read for a label, bytes."""
MAX_CLASSES = 1 << 20
"""Largest class list that numbers alone may make. A larger number is no class."""
LISTED = 5
"""Classes or labels that an error names."""

_NUMBER = re.compile(r"-?[0-9]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Kind = Literal["cls", "json", "folder"]
Index = TypeVar("Index", bound=ShardIndex)


class NoLabel(MaskCoError):
    """A sample has no usable label. The message is a reason, equal for equal causes."""


@dataclass(frozen=True)
class LabelSource:
    """Where labels are read from; as text it is the option `labels` that names it."""

    kind: Kind
    """cls: the sample's `.cls` member. json: a field of its `.json` member. folder: the first
    folder in its name."""
    field: str = ""
    """json: the field's name; dots lead into nested objects."""

    @classmethod
    def parse(cls, labels: "str | LabelSource | None") -> "LabelSource | None":
        """The source that an option names; InvalidInput for any other text."""
        if labels is None or isinstance(labels, LabelSource):
            return labels
        if labels == "cls":
            return cls("cls")
        if labels == "folder":
            return cls("folder")
        if isinstance(labels, str) and labels.startswith("json:") and labels != "json:":
            return cls("json", labels.removeprefix("json:"))
        raise InvalidInput(
            "`labels` must be 'cls', 'json:FIELD' (a field of the samples' .json members), "
            f"'folder' or None, got {labels!r}"
        )

    def __str__(self) -> str:
        return f"json:{self.field}" if self.kind == "json" else self.kind

    @property
    def max_bytes(self) -> int:
        """Largest member that is read, bytes."""
        return MAX_JSON_BYTES if self.kind == "json" else MAX_LABEL_BYTES

    def read(self, name: str, member: Callable[[], bytes | None]) -> "str | NoLabel":
        """The label of the sample called `name`, or why it has none.

        `member()` returns the sample's `.cls` or `.json` member, `max_bytes` + 1 of its bytes where
        it has more; None where there is none.
        """
        try:
            return self._of_name(name) if self.kind == "folder" else self._of_member(member())
        except NoLabel as reason:
            return reason

    def _of_name(self, name: str) -> str:
        folders = [part for part in name.split("/")[:-1] if part not in ("", ".")]
        if not folders:
            raise NoLabel("it lies in no folder")
        return _checked(folders[0])

    def _of_member(self, data: bytes | None) -> str:
        if data is None:
            raise NoLabel(f"it has no .{self.kind} member")
        if len(data) > self.max_bytes:
            raise NoLabel(f"its .{self.kind} member has more than {self.max_bytes} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise NoLabel(f"its .{self.kind} member is not UTF-8") from None
        if self.kind == "json":
            text = self._field_of(text)
        return _checked(text.strip())

    def _field_of(self, document: str) -> str:
        """The field's value, as text."""
        try:
            value: Any = json.loads(document)
        except (ValueError, RecursionError):
            raise NoLabel("its .json member does not parse as JSON") from None
        for name in self.field.split("."):
            if not isinstance(value, dict) or name not in value:
                raise NoLabel(f"its .json member has no field {self.field!r}")
            value = value[name]
        if isinstance(value, str):
            return value
        if isinstance(value, int):  # True and False are the labels "true" and "false"
            return json.dumps(value)
        kind = {dict: "an object", list: "a list", float: "a fraction"}.get(type(value), "null")
        raise NoLabel(f"the field {self.field!r} must be text or a whole number, and is {kind}")


def _checked(label: str) -> str:
    """The label, if it can stand in a class list; NoLabel otherwise."""
    if not label:
        raise NoLabel("its label is empty")
    if _CONTROL.search(label):
        raise NoLabel("its label has control characters")
    try:
        size = len(label.encode())
    except UnicodeEncodeError:  # half a surrogate pair, from JSON's \ud800 or a name's bad bytes
        raise NoLabel("its label is not Unicode text") from None
    if size > MAX_LABEL_BYTES:
        raise NoLabel(f"its label has more than {MAX_LABEL_BYTES} bytes")
    return label


def target_of(cls: bytes) -> int:
    """The number in a `.cls` member, -1 where it holds something else; for `labels` None."""
    text = cls[:20].strip()
    return int(text) if re.fullmatch(rb"-?[0-9]{1,18}", text) else -1


def pack_labels(source: LabelSource, labels: Sequence[str | NoLabel]) -> ShardLabels:
    """Pack the labels of a shard's usable samples, one an entry, for its index."""
    names: dict[str, int] = {}
    reasons: dict[str, int] = {}
    codes = np.empty(len(labels), np.int32)
    for number, label in enumerate(labels):
        if isinstance(label, NoLabel):
            codes[number] = -1 - reasons.setdefault(str(label), len(reasons))
        else:
            codes[number] = names.setdefault(label, len(names))
    return ShardLabels(source=str(source), names=tuple(names), codes=codes, reasons=tuple(reasons))


def check_options(
    labels: "str | LabelSource | None", classes: Sequence[str] | None
) -> tuple[LabelSource | None, tuple[str, ...] | None]:
    """The options `labels` and `classes`, validated. Raises InvalidInput."""
    source = LabelSource.parse(labels)
    if classes is None:
        return source, None
    if source is None:
        raise InvalidInput("`classes` needs `labels`, which says where the labels are read from")
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InvalidInput(f"`classes` must be a sequence of class names, got {classes!r}")
    if not len(classes):
        raise InvalidInput("`classes` must name at least one class; None takes the shards' labels")
    if len(set(classes)) < len(classes):
        twice = next(name for n, name in enumerate(classes) if name in classes[:n])
        raise InvalidInput(f"`classes` must name each class once, but has {twice!r} twice")
    return source, tuple(classes)


@dataclass
class _Occurrence:
    """A label, or a reason for lacking one, in the shards."""

    count: int
    """Samples."""
    first: str
    """Key and shard of the first one."""


class _Survey:
    """The labels and the reasons for lacking one that occur in the shards."""

    def __init__(self, shards: Iterable[ShardIndex], source: LabelSource) -> None:
        self._source = source
        self.labels: dict[str, _Occurrence] = {}
        self._reasons: dict[str, _Occurrence] = {}
        self._unlabelled = ""
        """The first sample without a label, and why."""
        self._samples = 0
        for shard in shards:
            self._add(shard)

    def _add(self, shard: ShardIndex) -> None:
        mine = labels_of(shard)
        self._samples += len(mine.codes)
        codes, firsts, counts = np.unique(mine.codes, return_index=True, return_counts=True)
        lacking = firsts[codes < 0]
        for code, first, count in zip(codes.tolist(), firsts.tolist(), counts.tolist()):
            found = self.labels if code >= 0 else self._reasons
            name = mine.names[code] if code >= 0 else mine.reasons[-1 - code]
            if name in found:
                found[name].count += count
            else:
                place = f"{shard.key(first)} in {redact_url(shard.path)}"
                found[name] = _Occurrence(count, place)
                if code < 0 and not self._unlabelled and first == lacking.min():
                    self._unlabelled = f"{place}: {name}"

    def require_labels(self) -> None:
        """Raise InvalidInput where samples have no label: their number, reasons and the first."""
        if not self._reasons:
            return
        frequent = sorted(self._reasons.items(), key=lambda item: -item[1].count)[:LISTED]
        causes = "; ".join(f"{found.count}: {cause}" for cause, found in frequent)
        raise InvalidInput(
            f"{sum(found.count for found in self._reasons.values())} of {self._samples} samples "
            f"have no label by labels={str(self._source)!r} ({causes}). The first is "
            f"{self._unlabelled}. Add the labels, leave these samples out of the shards, or pass "
            "another source as `labels`"
        )

    def class_list(self) -> tuple[str, ...]:
        """The class list of the shards' own labels: "0", "1", … up to the largest where all labels
        are numbers, so that a class's number is its label; the sorted labels where none is one.

        Raises InvalidInput where some are, or where a number is not in [0, MAX_CLASSES).
        """
        source, names = self._source, sorted(self.labels)
        numbers = {name: int(name) for name in names if _NUMBER.fullmatch(name)}
        if not numbers:
            return tuple(names)
        texts = [name for name in names if name not in numbers]
        if texts:
            odd = texts[0] if len(texts) <= len(numbers) else next(iter(numbers))
            raise InvalidInput(
                f"labels must be all numbers or all text, got {len(numbers)} numbers and "
                f"{len(texts)} others by labels={str(source)!r}, such as {odd!r} of "
                f"{self.labels[odd].first}. Correct the shards, or pass the list of both as "
                "`classes`"
            )
        for name, number in numbers.items():
            if not 0 <= number < MAX_CLASSES:
                raise InvalidInput(
                    f"a label that is a number must be in [0, {MAX_CLASSES - 1}], got {name} of "
                    f"{self.labels[name].first} by labels={str(source)!r}. Correct the shards, or "
                    "pass the labels that occur as `classes`, which numbers them in that order"
                )
        return tuple(str(number) for number in range(max(numbers.values()) + 1))

    def require_known(self, listed: Sequence[str]) -> None:
        """Raise InvalidInput where a label is not in the list."""
        numbers = class_numbers(listed)
        unknown = {
            name: found for name, found in self.labels.items() if class_number(name, numbers) < 0
        }
        if unknown:
            label, found = next(iter(unknown.items()))
            raise InvalidInput(
                f"{sum(one.count for one in unknown.values())} of {self._samples} samples have a "
                f"label that is not in the list of {len(listed)} classes ({_listed(listed)}), by "
                f"labels={str(self._source)!r}. The first is {label!r} of {found.first}; "
                f"{len(unknown)} such labels in all. Pass the class list of training as `classes`, "
                "or leave these samples out of the shards"
            )


def choose_classes(
    shards: Iterable[ShardIndex], source: LabelSource, classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The class list of a dataset: `classes`, or by `None` that of the labels that occur: "0", "1",
    … up to the largest where all are numbers, else the labels sorted.

    Raises InvalidInput, naming shard and key, where a sample has no label or one that is not in the
    class list, or where only some labels are numbers.
    """
    survey = _Survey(shards, source)
    survey.require_labels()
    listed = survey.class_list() if classes is None else tuple(classes)
    survey.require_known(listed)
    return listed


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class in the list."""
    return {name: number for number, name in enumerate(classes)}


def set_targets(shard: Index, numbers: dict[str, int]) -> Index:
    """The shard with `samples["target"]` set by its labels; `numbers`: of `class_numbers`."""
    mine = labels_of(shard)
    table = np.array([class_number(name, numbers) for name in mine.names] or [0], np.int64)
    samples = shard.samples.copy()
    samples["target"] = table[mine.codes]
    return dataclasses.replace(shard, samples=samples)


def class_number(label: str, numbers: dict[str, int]) -> int:
    """The number of a label's class, -1 where it is not in the list; "007" is also "7"."""
    if label in numbers:
        return numbers[label]
    return numbers.get(str(int(label)), -1) if _NUMBER.fullmatch(label) else -1


def labels_of(shard: ShardIndex) -> ShardLabels:
    """The labels of a shard that was indexed with some."""
    assert shard.labels is not None
    return shard.labels


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes[:LISTED]) + (", …" if len(classes) > LISTED else "")
