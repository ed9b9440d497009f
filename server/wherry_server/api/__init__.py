"""HTTP routes: thin entrypoints to the services."""
