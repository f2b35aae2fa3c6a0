"""The node's HTTP side: status page, health, metrics and STOW-RS; off unless `node.yaml` has a section `web`.

A request passes `http_server` (bounded connections), `middleware` (key, host name), then `routes`. STOW-RS goes through
`stow` and `upload` to the same intake as C-STORE.
"""
