"""MLflow: the only room that imports it. `tracker` writes one run, `parent` a group, `store` opens what they write to.

`registry`, `release` and `fetch` are the way of a release from a run to a server; `migrate` moves a laptop's runs.
"""
