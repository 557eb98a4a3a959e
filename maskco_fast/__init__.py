"""MaskCo pre-training on web-scale image shards."""
