"""What loaders and programs ask of the operating system: files that survive a crash, usable CPUs,
progress."""
