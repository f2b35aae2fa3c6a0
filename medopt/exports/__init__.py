"""A release in the forms of other servers: a Triton model repository, OpenVINO's IR, a MONAI bundle, Kubernetes.

Each is written whole or not at all, read back with its own tool and compared on the release's golden cases before it
gets its name. Only engines that passed the release's gate are exported for.
"""
