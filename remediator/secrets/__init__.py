"""Secrets: `reading` gets them when they are needed, `scrubber` takes them out of whatever is stored, logged, sent or shown."""
