"""Pictures of views, runs, networks and benchmark results, written as PNG; the report page.

views.py     the crops, mask and boxes of a few images
loss.py      loss, images/s and data wait of a run
layers.py    accuracy of linear probes by layer
bars.py      images/s of each row of `bench`
mph.py       conv5 and mask prediction head, for clean and for masked images
drawing.py   what they share: figures and PNG files

report.py    one HTML page about runs; run_summary.py reads them, curves.py draws inline SVG,
             report_style.py is the style sheet
"""
