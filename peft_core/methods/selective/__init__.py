"""Methods that train some of the stock parameters."""
