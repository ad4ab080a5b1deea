"""The command line: a line read, typed and handed to a function."""
