"""What a run leaves on the disk: checkpoints and a log."""
