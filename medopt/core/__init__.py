"""What every room is built on: records, errors, files, provenance, signals and jobs. It imports no other room."""
