"""The smallest rights that a rule set needs: `needs` finds them, `grants` writes them in each granting system's words. Pure."""
