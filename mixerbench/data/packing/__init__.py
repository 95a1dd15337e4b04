"""Packed data sets: images in a few large Arrow files instead of a million small ones.

A packed root holds, for each split, shards (``train-00000.arrow``, ...), an index of them
(``train.index.arrow``), and for both ``pack.json``, which is written last. Any Arrow
implementation reads the shards as they are.
"""
