"""Methods that need clip models: one file a method."""
