"""Starts the three servers on this machine, and keeps them up; it knows no film."""
