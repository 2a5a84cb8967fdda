"""Checks of Kubernetes, one module each. They only read."""
