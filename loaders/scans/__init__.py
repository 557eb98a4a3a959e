"""The scan index: checkpoints of JPEGs, so that later epochs read only what their crops need."""
