"""Records of a run: the journal that is the truth, and MLflow, which is fed from it."""
