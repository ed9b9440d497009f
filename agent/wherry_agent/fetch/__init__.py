"""Ways for release bytes to reach the engine."""
