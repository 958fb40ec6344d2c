"""What the commands of the command line have in common."""
