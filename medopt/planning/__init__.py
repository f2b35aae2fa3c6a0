"""From a manifest to a study file: what the data are decides what is done with them, and each choice says why."""
