"""Finding the batch policy that a goal asks for: which settings to try, running them, and judging what came out."""
