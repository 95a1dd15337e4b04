"""How models are trained: thin over timm, each constant in ``configs/recipe``.

Where timm's defaults have moved since DeiT was written, DeiT wins; ``tests/recipe`` names
each difference.
"""
