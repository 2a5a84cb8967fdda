"""Comparing what is open here with what Alertmanager lists.

`findings` (what follows from it) and `stream` (reading a long list) are pure; `peers` asks Alertmanager; `keeper` is the loop.
"""
