"""The node's HTTP side: its page with health and metrics, and STOW-RS in; off unless `node.yaml` has a section `web`.

A request passes `door` (bounded connections), `guard` (key, host), then `routes`. What comes by STOW-RS goes through
`multipart` and `upload` to the same intake as C-STORE.
"""
