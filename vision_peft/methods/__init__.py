"""Methods that need vision models: one file a method."""
