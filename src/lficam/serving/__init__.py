"""A trained model as a page for people and an endpoint for programs, on this machine alone."""
