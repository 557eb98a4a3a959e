"""Shards: their names, indexes and samples; .beton files; decoding of images."""
