"""Colour, blur, normalisation and mask of a view: one module per implementation, all held to the
reference."""
