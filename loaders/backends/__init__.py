"""Backends of `make_loader`, one module each: native, DALI, FFCV and the slow reference."""
