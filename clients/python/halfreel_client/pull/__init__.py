"""Fetches models from a hub into its local cache, where the servers, which never download, find them."""
