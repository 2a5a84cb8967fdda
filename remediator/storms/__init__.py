"""Storms: too many incidents at once.

`breaker` is pure and says when nothing acts by itself any more; `keeper` is the loop that tells people and lets go again.
"""
