"""What a run may say of itself, once: stores and bundles are judged by the same rules.

A run's settings were recorded as parameters. They are read back, hashed again and compared with
what the tags claim; numbers and times must be ones that a run can have. No check can show that a
run was trained at all: docs/sharing.md says what is left to trust.
"""
