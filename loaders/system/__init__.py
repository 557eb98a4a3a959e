"""The operating system's side of loaders and programs: atomic files, usable CPUs, progress."""
