"""A JPEG's own coefficients in a form made for reading: the records of `beton --form coefficients`.

jpeg_file     the structure of a JPEG; block_order says where its components' blocks lie
read_scan     entropy-coded scans to coefficients; write_scan makes the scans again
record        the layout of a record, which docs/coefficients.md specifies
pack          a JPEG to a record; unpack gives the coefficients and the JPEG back
decode        a region of a record to pixels: read_block by block, with avx512 where a CPU has it
reference     the slow, obvious reader
"""
