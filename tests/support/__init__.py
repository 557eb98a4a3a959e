"""What tests share: generated images and shards, remote servers, a tiny training run."""
