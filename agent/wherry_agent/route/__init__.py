"""Ways to hold a slot's stable local endpoint."""
