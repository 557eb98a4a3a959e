"""Pictures of views, of a run's loss and of benchmark results, written as PNG.

views.py     the crops, mask and boxes of a few images
loss.py      loss, images/s and data wait of a run
bars.py      images/s of each row of `bench`
drawing.py   what they share: figures and PNG files
"""
