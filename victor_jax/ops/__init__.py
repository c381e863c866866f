"""Free functions on arrays: no parameters, no configuration."""
