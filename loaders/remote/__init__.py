"""Shards on servers: reading through faults, the shard cache, prefetching and streaming."""
