"""`medopt serve`: releases behind the Open Inference Protocol v2, over REST and gRPC, by KServe's Python server.

A request passes through these modules in this order: `rest` or `grpc_door` (key, size, time), `wire` or `grpc_wire`
(bytes to tensors), `service` (queue, readers, the log), `incoming` (a scan's bytes to a prepared image), `batcher`
(images of several requests to one call of the engine). `shelf` holds the releases. Only `kserve_parts`, `rest` and the
gRPC modules import KServe, which the extra `serve` brings.
"""
