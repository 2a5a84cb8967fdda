"""Actions on Kubernetes, one module each. None of them imports another."""
