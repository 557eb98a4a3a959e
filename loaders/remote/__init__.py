"""Read shards from HTTP servers, S3 and shell commands, through server faults.

| module | holds |
|---|---|
| `config` | `RemoteConfig`, the options |
| `errors` | the error classes, and which failures are worth a retry |
| `pipe` | `Pipe`, the output of a `pipe:` command |
| `store` | `RemoteStore`: sizes and bytes of shards, with retries |
| `cache` | `ShardCache`: a bounded folder of whole shards, shared by the processes of a host |
| `prefetch` | `ShardPrefetcher`: the shards of an epoch, downloaded in order of first use |
| `dataset` | `RemoteDataset`: exact order and resume, through the cache |
| `stream` | `StreamDataset`: approximate order, without a disk |
| `tar_stream` | the members of a tar that passes by once |
| `http`, `systems` | bounded reads over HTTP; file systems of other protocols |

A read through the cache: `RemoteDataset.read` → `ShardPrefetcher.read` → a `Pin` on the cached
shard. Threads of the prefetcher call `ShardCache.acquire_if_room`; a reader that is ahead of them
calls `acquire`. Both download with `RemoteStore.blocks`, which repeats failed requests. A stream
skips the cache: `tar_stream` reads the tar archive directly from `RemoteStore.blocks`.
"""
