"""JPEG markers by name (ITU-T T.81, table B.1).

A marker is the byte `PREFIX` followed by one of the codes below. Most markers begin a segment: a
big-endian length of two bytes, which counts itself, then the segment's content. SOI, EOI, TEM and
the restart markers stand alone.

Terms of the modules in this folder:

- MCU, minimum coded unit: the blocks that are coded together, of each component (Y, Cb, Cr) as many
  as its sampling factors say. With luma sampled 2x2 an MCU is 16x16 pixels: four blocks of Y, one
  each of Cb and Cr.
- DC and AC: the first of a block's 64 coefficients, which is its mean, and the other 63. DC is
  coded as the difference from the component's previous block.
- Zigzag order: coefficients along the anti-diagonals of the 8x8 block, as they are coded and as
  quantisation tables are stored. Natural order: row by row, coefficient (v, u) at 8 v + u.
- Ss, Se: first and last coefficient of a scan, in zigzag order. Ah, Al: the bit position that the
  scan before ended at, and the one that this scan ends at. A sequential scan has Ss=0, Se=63,
  Ah=Al=0; progressive JPEGs split coefficients into several scans by them.
- Stuffed byte: a 0 after each 0xFF of entropy-coded data, so that no marker appears in it.
"""

PREFIX = 0xFF
"""First byte of every marker. A run of them before a marker is padding (fill bytes)."""
STUFFED = 0x00
"""Behind `PREFIX` in entropy-coded data: the two bytes stand for a data byte 0xFF."""

SOF0 = 0xC0
"""Start of frame, baseline DCT: image size, components and their sampling."""
SOF1 = 0xC1
"""Start of frame, extended sequential DCT, Huffman coding."""
SOF2 = 0xC2
"""Start of frame, progressive DCT; the first that this decoder does not take."""
DHT = 0xC4
"""Define Huffman tables."""
SOF15 = 0xCF
"""Start of frame, differential lossless, arithmetic coding: the last of the SOF codes."""
RST0 = 0xD0
"""Restart marker 0. Restart markers are numbered 0..7 in turn, between intervals of MCUs."""
RST7 = 0xD7
SOI = 0xD8
"""Start of image: a file's first marker."""
EOI = 0xD9
"""End of image."""
SOS = 0xDA
"""Start of scan: a header, then entropy-coded data up to the next marker."""
DQT = 0xDB
"""Define quantisation tables."""
DRI = 0xDD
"""Define restart interval, in MCUs."""
APP0 = 0xE0
"""Application segment 0: JFIF."""
APP14 = 0xEE
"""Application segment 14: Adobe, with the colour transform of the components."""
APP15 = 0xEF
"""The last application segment."""
COM = 0xFE
"""Comment."""
