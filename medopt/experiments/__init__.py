"""Several runs together: seeds and folds, ensembles, sweeps, compression searches, comparisons and promotions."""
