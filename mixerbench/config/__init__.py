"""The settings of a run in their three groups: model, protocol, run. ``schema.py`` lists them."""
