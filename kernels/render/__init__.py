"""From an image, or its file, to the views of a batch.

resize           crop, antialiased bilinear resize and flip; resize_bicubic with that filter
image            a decoded image to the views of a batch
decode_crops     the part of a JPEG that its crops need; fastest_decoder chooses the way
jpegs            JPEG files to the views of a batch
records          the same from the records of a .beton of coefficients
"""
