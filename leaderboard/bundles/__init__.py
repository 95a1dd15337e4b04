"""Results in a folder that can be given to others: written, checked, read like a store.

============================  =====================================================
bundle.json                   schema version, checksums of the rest
runs.json                     what was logged of each run and its settings; measurements
predictions.parquet           per image and run, as ``keys.Prediction``
curves.parquet                ``run_id, metric, step, value``
hardest_images.parquet        as ``keys.Hardest``, with small pictures
============================  =====================================================

What names places on somebody's machine (data.root, run.root, the store) is as if it had not been
set, and weights and plugins are left out: nothing in a bundle is ever executed.
"""
