"""Discriminators, which a loss names by `disc_config`."""
