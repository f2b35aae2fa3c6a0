"""Asks a PACS for instances that never reached the node: by C-FIND and C-MOVE, or by QIDO-RS and WADO-RS.

`dimse_source` and `web_source` query a PACS; `reconcile` compares it with the ledger and has the missing instances
sent, which come in as any other; `periodic` does so in a running node.
"""
