"""What people have taken, so that automation keeps its hands off.

`taking` is pure; `keeper` is the loop that ends what was taken for a time.
"""
