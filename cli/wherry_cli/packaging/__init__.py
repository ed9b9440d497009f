"""Model file to OCI image, without Docker and without code."""
