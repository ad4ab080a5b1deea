"""Methods of several kinds of graft."""
