"""The gateway of Halfreel: it takes ideas, runs the production of their films, and never loses one."""
