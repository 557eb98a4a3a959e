"""Export of a pre-trained trunk to the formats of other libraries, with a model card.

key_maps.py             torchvision's parameter names to those of each library
formats.py              the table of formats: names, file endings, how each file is written
detectron2_configs.py   the two configuration files of MoCo's detection protocol
model_card.py           the Markdown file beside the weights
write.py                one call that writes all of it
"""
