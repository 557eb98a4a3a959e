"""What a GPU will have to do, counted without one: bytes, launches, machine code, graph nodes."""

import benchmarks.gpu  # noqa: F401 finds the package in a plain checkout
