"""Training: one loop, one state, and a task for each kind of model that is trained."""
