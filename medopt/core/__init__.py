"""What every room stands on: records, errors, files, provenance, signals and jobs. It imports no other room."""
