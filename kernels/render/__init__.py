"""From an image, or its file, to the views of a batch.

resize           crop, antialiased bilinear resize and flip; resize_bicubic with that filter
image            a decoded image to the views of a batch
files            the loop over the files of a call: decode, then render or resize
jpegs            JPEG files to the views of a batch; fastest_decoder chooses among two decoders
records          the same from the records of a .beton of coefficients
"""
