"""From a Volume to the model's tensor (prepare, fingerprinted) and the random changes of training images (augment)."""
