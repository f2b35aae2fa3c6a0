"""`medopt serve`: releases behind the Open Inference Protocol v2, over REST and gRPC.

A request passes through these modules in this order: `rest_server` or `grpc_server` (key, size, time; `v2_codec` turns
bytes into tensors), `service` (queue, readers, the log), `decode_scan` (a scan's bytes to a prepared image), `batcher`
(images of several requests to one call of the engine). `releases` holds what is served, `metadata` says what that is,
`openapi` describes the routes, and `try_page` is a page to try a release by hand. `multipart`, `html_page` and
`bounded_http` serve the node's HTTP side, too. `generated` has the protocol's gRPC messages. starlette, uvicorn and
grpc come with the extra `serve`.
"""
