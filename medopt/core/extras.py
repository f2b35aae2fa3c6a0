"""Which extra of medopt brings a package, for the message where one is missing."""

from __future__ import annotations

_EXTRAS: dict[str, tuple[str, ...]] = {
    "flask_wtf": ("mlflow-server",),
    "google.protobuf": ("serve",),
    "grpc": ("serve",),
    "highdicom": ("pacs",),
    "httptools": ("serve",),
    "jinja2": ("train", "serve", "pacs"),
    "lightning_fabric": ("train",),
    "matplotlib": ("train",),
    "mlflow": ("train", "registry", "mlflow-server"),
    "nncf": ("train",),
    "onnx": ("train",),
    "onnxscript": ("train",),
    "optuna": ("train",),
    "orjson": ("serve",),
    "pandas": ("train",),
    "pooch": ("train",),
    "prometheus_client": ("serve", "pacs"),
    "psutil": ("train",),
    "psycopg": ("mlflow-server",),
    "pynetdicom": ("pacs",),
    "ray": ("ray",),
    "requests": ("train", "pacs"),
    "safetensors": ("train",),
    "sqlalchemy": ("train",),
    "starlette": ("serve", "pacs"),
    "uvicorn": ("serve", "pacs"),
}
"""Import name of each package to the extras that bring it. Everything else comes with medopt itself."""

_EXTRA_OF_COMMAND = {
    "serve": "serve",
    "pacs": "pacs",
    "pull": "registry",
    "promote": "registry",
    "rollback": "registry",
}


def extra_for(module: str, command: str = "") -> str | None:
    """The extra that brings a module, the one of the command where several do; None for what no extra brings.

    Example:
        >>> extra_for("grpc"), extra_for("uvicorn.config", "pacs"), extra_for("torch")
        ('serve', 'pacs', None)
    """
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        extras = _EXTRAS.get(".".join(parts[:length]))
        if extras:
            own = _EXTRA_OF_COMMAND.get(command)
            return own if own in extras else extras[0]
    return _EXTRAS["google.protobuf"][0] if module == "google" else None


def missing_package(module: str, command: str = "") -> str:
    """What to tell a user whose installation lacks a module.

    Example:
        >>> missing_package("pynetdicom")
        "This command needs pynetdicom, which is not installed: pip install 'medopt[pacs]'."
    """
    extra = extra_for(module, command)
    package = f"'medopt[{extra}]'" if extra else "--force-reinstall medopt"
    return f"This command needs {module}, which is not installed: pip install {package}."
