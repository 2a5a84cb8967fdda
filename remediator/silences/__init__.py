"""Keeping an alert quiet while a run works on it.

`silencing` is pure and says what is wanted, `ours` is pure and says which silences are this daemon's (actions ask it, too), `keeper` is
the loop.
"""
