"""How far a rule may go by itself: `standing` (lost by failures), `scorecard` (what it was worth), `promotion` (by people). Pure."""
