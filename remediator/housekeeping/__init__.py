"""Keeping the store small and provable: `rounds` does a little at a time, `keeper` is the loop."""
