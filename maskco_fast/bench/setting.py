"""The setting that every row of the bench shares, and the interface of a row."""

import pathlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from maskco_fast.loaders import Dataset, open_dataset


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every row gets; `BenchConfig` documents the fields."""

    shards: tuple[str, ...]
    batch_size: int
    size: int
    workers: int
    dtype: str
    decode: str = "exact"
    images: int | None = None
    ffcv_ssl: pathlib.Path | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return getattr(torch, self.dtype)


class Running(ABC):
    """A row that has been opened in its process."""

    def __init__(self, setting: Setting, dataset: Dataset | None = None) -> None:
        self.setting = setting
        self.dataset = open_dataset(setting.shards) if dataset is None else dataset
        self.images = min(setting.images or len(self.dataset), len(self.dataset))
        """Images of a full pass."""

    @abstractmethod
    def epoch(self, images: int) -> Iterator[int]:
        """A pass over about `images` images; yields the size of each batch when it arrives."""

    def check_parity(self) -> str:
        """The row's measured difference from the reference loader; "" where none is measured.

        Raises `ParityError` when the views are outside the tolerance.
        """
        return ""

    def close(self) -> None:
        """Release threads, workers and files."""
        self.dataset.reader.close()
