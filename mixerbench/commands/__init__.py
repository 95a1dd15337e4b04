"""What the command line does beside training: one file per command."""
