"""What tests alone use: run folders with made-up outcomes, trainings that are stopped or killed at a given call,
and comparisons of runs to the bit."""
