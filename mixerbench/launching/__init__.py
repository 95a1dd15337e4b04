"""Where runs are trained: in this process, in several, side by side, on a cluster."""
