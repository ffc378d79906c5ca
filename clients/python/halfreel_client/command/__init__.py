"""The `halfreel` command, one file for each of its commands."""
