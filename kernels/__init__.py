"""Pure functions on arrays: the plan, resize and augmentation, each fast kernel beside a slow,
obvious reference."""
