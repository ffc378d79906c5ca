"""Finds out what this machine can run, and why not the rest."""
