"""Training: one loop for every device, the state that is saved, and the folder of a run."""
