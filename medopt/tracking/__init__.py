"""MLflow: the only room that imports it. `tracker` writes one run, `parent` a group, `store` opens what they write to.

`registry`, `release` and `fetch` are the way of a release from a run to a server; `migrate` moves a laptop's runs.
"""

from medopt.core.telemetry import disable_mlflow_telemetry

disable_mlflow_telemetry()  # must be there before any module of this room imports mlflow
