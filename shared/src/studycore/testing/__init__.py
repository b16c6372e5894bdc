"""What tests alone use: run folders with made-up outcomes, and trainings that are stopped or killed at a given call."""
