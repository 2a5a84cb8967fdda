"""Freezes: times at which nothing acts, or nothing without a person.

`windows` (what is in force) and `manual` (what people froze) are pure; `calendars` reads iCalendar files; `keeper` is the loop.
"""
