"""What `recsys tune` is made of: the space, the trials and their order, Optuna's study, and a trial itself."""
