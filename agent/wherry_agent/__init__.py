"""The daemon on each device: observes, plans, journals, acts and reports."""
