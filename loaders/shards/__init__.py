"""Shards on disk: their names, their index, the samples in them and how those are decoded."""
