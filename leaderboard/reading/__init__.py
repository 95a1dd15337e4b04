"""Where results come from: MLflow stores and servers, caches, files of runs."""
