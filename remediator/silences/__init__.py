"""Keeping an alert quiet while a run works on it: `silencing` is pure and says what is wanted, `keeper` is the loop."""
