"""What every operator does to dead entries: one rule per operator, by kind."""
