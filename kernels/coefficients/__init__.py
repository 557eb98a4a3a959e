"""A JPEG's own coefficients in a form made for reading: the records of `beton --form coefficients`.

`jpeg_file` parses a JPEG, `scans` reads and writes its entropy-coded scans, `record` lays the
coefficients out and gives the JPEG back, `decode` reads a region of a record to pixels.
docs/coefficients.md specifies the record.
"""
