"""A package of the published name and structure, whose networks tests pickle whole."""
