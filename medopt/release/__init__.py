"""A release: the folder that goes to a clinical inference server. Here it is built, opened and verified."""
