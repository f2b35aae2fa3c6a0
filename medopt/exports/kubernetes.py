"""An InferenceService of KServe for a Kubernetes cluster: the release, an image that serves it, and the manifest.

The image holds the release, so that what runs has one digest and nothing is fetched at the start. The manifest is
KServe's v1beta1 with a container of its own: https://kserve.github.io/website, "Custom Predictor".
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from medopt import __version__
from medopt.core.errors import ReleaseError
from medopt.core.files import file_digest, write_text
from medopt.exports.folder import ExportResult, ExportSource, whole_folder
from medopt.release.layout import SUMS, Kind, check_sums

MANIFEST, DOCKERFILE, RELEASE = "inferenceservice.yaml", "Dockerfile", "release"
PORT, GRACE = 8080, 45
_HEAD = """\
# 1. Put medopt's wheel here: pip wheel --no-deps -w . PATH_OF_MEDOPT
#    docker build -t {image} . && docker push {image}
# 2. kubectl create secret generic {name}-key --from-literal=key=$(openssl rand -hex 32)
# 3. kubectl apply -f {manifest}
"""
_DOCKERFILE = """\
FROM python:3.11-slim
COPY medopt-*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/medopt-*.whl)[serve]" && rm /tmp/medopt-*.whl && useradd --uid 1000 medopt
COPY release /release
RUN medopt verify /release
USER 1000
ENTRYPOINT ["medopt", "serve", "/release"]
"""


def export_kserve(source: ExportSource, target: Path, kind: Kind | None = None) -> ExportResult:
    """Write the folder to `target`. `kind` None serves int8. Raises ReleaseError."""
    name = service_name(source.info.study)
    version = file_digest(source.folder / SUMS)[:12]
    image = f"registry.example/{name}:{version}"
    kind = kind or "int8"
    document = manifest(source, name, version, image, kind)
    with whole_folder(target) as part:
        shutil.copytree(source.folder, part / RELEASE)
        check_sums(part / RELEASE)
        head = _HEAD.format(image=image, name=name, manifest=MANIFEST)
        write_text(part / MANIFEST, head + yaml.safe_dump(document, sort_keys=False))
        write_text(part / DOCKERFILE, _DOCKERFILE)
        if yaml.safe_load((part / MANIFEST).read_text(encoding="utf-8")) != document:
            raise ReleaseError(f"{MANIFEST} does not read back as it was meant; not exported.")
    return ExportResult({}, model=kind, name=name, image=image)


def service_name(study: str) -> str:
    """A study's name as Kubernetes takes it (RFC 1123, and begins with a letter)."""
    name = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"release-{name}".strip("-")


def manifest(source: ExportSource, name: str, version: str, image: str, kind: Kind) -> dict[str, Any]:
    """The InferenceService: probes on the protocol's own health routes, the key from a secret, time to finish."""
    key = {"secretKeyRef": {"name": f"{name}-key", "key": "key"}}
    container = {
        "name": "kserve-container",
        "image": image,
        "args": ["--model", kind, "--host", "0.0.0.0", "--port", str(PORT), "--grpc-port", "-1"],
        "env": [{"name": "MEDOPT_API_KEY", "valueFrom": key}],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": PORT}, "periodSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": PORT},
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
        },
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    annotations = {
        "medopt/release": version,
        "medopt/chain": source.info.chain_fingerprint[:16],
        "medopt/version": __version__,
    }
    scratch = {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "terminationGracePeriodSeconds": GRACE,
                "containers": [container],
                "volumes": [scratch],
            }
        },
    }
