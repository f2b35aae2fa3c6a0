"""Asking a PACS for what its routing lost: by C-FIND and C-MOVE, or by QIDO-RS and WADO-RS.

`dimse_source` and `web_source` ask, `reconcile` compares with the ledger and has the missing instances fetched, which
come in by the node's own doors; `periodic` does so in a running node.
"""
