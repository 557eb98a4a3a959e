"""`RemoteConfig`: the options for reading shards from servers."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...kernels.errors import InvalidInput

SECRET: Mapping[str, bool] = {"secret": True}
"""Metadata of fields that are never written down."""


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Options for reading shards named by URLs or pipe:."""

    mode: Literal["cache", "stream"] = "cache"
    """cache: whole shards in a bounded folder on the local disk; exact order and exact resume.
    stream: no disk; order and resume are approximate, and epoch_samples is
    required."""
    cache_folder: str | None = None
    """Folder of the cached shards, shared by all processes of this host; None for the user's cache
    folder."""
    cache_gb: float = 64.0
    """Limit of that folder, GB (10^9 bytes); the least recently used shards are removed first."""
    ahead: int = 16
    """Shards to prefetch at most, as far as the cache has room; the default is one block of the
    shuffle."""
    downloads: int = 4
    """Concurrent downloads in each process."""
    request_mb: float = 8.0
    """Largest request, MB: the most that one fault can cost, and the amount that `timeout` covers.
    """
    timeout: float = 60.0
    """Time limit of one request, seconds."""
    patience: float = 600.0
    """Seconds of consecutive failures of a shard before the run ends: the longest outage that a run
    survives."""
    backoff: float = 0.5
    """Upper bound of the random wait before the first retry, seconds; doubles with each retry, up
    to 30."""
    s3_endpoint: str | None = None
    """URL of an S3 API other than Amazon's; None for AWS_ENDPOINT_URL from the environment, if set.
    """
    s3_anonymous: bool = False
    """Read public buckets without credentials."""
    headers: tuple[str, ...] = field(default=(), metadata=SECRET, repr=False)
    """Headers of HTTP requests, each 'NAME: VALUE', or 'NAME: $VARIABLE' for a value from the
    environment, which other users of the machine cannot see. Never written down: a resumed run
    needs them again. A redirect to another host or port is followed without them."""
    epoch_samples: int | None = None
    """stream: samples in an epoch, over all processes; required, because a stream is not counted.
    """
    shuffle_buffer: int = 2000
    """stream: size of each process's shuffle buffer, encoded samples."""

    def __post_init__(self) -> None:
        for name in ("cache_gb", "request_mb", "timeout", "patience", "backoff"):
            self._require(name, getattr(self, name) > 0, "greater than 0")
        for name in ("downloads", "shuffle_buffer"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("ahead", self.ahead >= 0, "at least 0")
        self._require(
            "epoch_samples",
            self.mode != "stream" or (self.epoch_samples or 0) >= 1,
            "at least 1 in stream mode",
            "Set --remote.epoch-samples, or read through the cache with --remote.mode cache.",
        )

    def http_headers(self) -> dict[str, str]:
        """`headers` by name. Raises InvalidInput, which does not repeat a value."""
        found: dict[str, str] = {}
        for number, header in enumerate(self.headers, 1):
            name, colon, value = (part.strip() for part in header.partition(":"))
            if not colon or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise InvalidInput(
                    "RemoteConfig.headers must be 'NAME: VALUE' or 'NAME: $VARIABLE', and number "
                    f"{number} is not."
                )
            if value.startswith("$"):
                variable = value.removeprefix("$")
                if variable not in os.environ:
                    raise InvalidInput(
                        f"RemoteConfig.headers: the environment must have {variable}, the value "
                        f"of {name}."
                    )
                value = os.environ[variable]
            if re.search(r"[\r\n\0]", value):
                raise InvalidInput(f"RemoteConfig.headers: {name} must have a value of one line.")
            found[name] = value
        return found

    def _require(self, name: str, holds: bool, rule: str, remedy: str = "") -> None:
        """Raise InvalidInput unless `holds`."""
        if not holds:
            value = getattr(self, name)
            raise InvalidInput(f"RemoteConfig.{name} must be {rule}, got {value}. {remedy}".strip())
