"""The embedded models of Halfreel: where their folders are.

Importing this package imports no torch; it does not know how the models are used.
"""

from halfreel_pocket.folders import NAMES, folder

__all__ = ["NAMES", "folder"]
