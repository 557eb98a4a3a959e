"""The built-in demo set: labelled scenes, drawn offline.

scenes.py     draws a scene and its label
patterns.py   textures, shapes and skins that scenes consist of
shards.py     writes scenes as JPEGs into webdataset shards
"""
