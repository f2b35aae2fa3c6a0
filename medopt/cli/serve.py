"""`medopt serve`: releases behind the Open Inference Protocol v2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.options import ModelOption, RegistryOption
from medopt.cli.places import release_folder
from medopt.core.errors import ConfigError, ReleaseError


def serve(
    releases: Annotated[
        list[Path],
        typer.Argument(
            metavar="RELEASE...",
            help="Releases, runs, studies' folders (their newest run's), or models:/NAME@champion.",
        ),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="For REST; 0 lets the system choose.")] = 8080,
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", min=-1, max=65535, help="For gRPC; 0 lets the system choose, -1: no gRPC.")
    ] = 8081,
    model: ModelOption = "int8",
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Images in hand at once; beyond it 429 or RESOURCE_EXHAUSTED.")
    ] = 64,
    max_body_mb: Annotated[
        int, typer.Option("--max-body-mb", min=1, max=2000, help="Largest request in MiB; beyond it 413.")
    ] = 64,
    gather_ms: Annotated[
        float, typer.Option("--gather-ms", min=0, help="How long a batch waits for requests that are on their way.")
    ] = 2.0,
    read_seconds: Annotated[
        float, typer.Option("--read-seconds", min=0.1, help="Time to read a request's scans; beyond it 504.")
    ] = 30.0,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A file with the API key; else MEDOPT_API_KEY, else none.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="The server's certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", help="Only clients with a certificate signed by this one (PEM).")
    ] = None,
    traces: Annotated[
        str | None, typer.Option("--traces", metavar="URI", help="MLflow store for a trace of each request.")
    ] = None,
    try_page: Annotated[
        bool, typer.Option("--try", help="A page at /try where a person uploads a scan and sees the answer.")
    ] = False,
    runs: RegistryOption = Path("runs"),
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen beyond this machine without a key: something else asks for one.")
    ] = False,
) -> None:
    """Answer requests with releases: Open Inference Protocol v2 over REST and gRPC, health, metadata, metrics.

    A release is asked for by its study's name, /v2/models/STUDY/infer, and by version (the beginning of its hash) with
    /versions/VERSION; of several the last one named here answers. Each replays its golden cases before it is ready; one
    that was changed, or does not answer as when it was built, stays out with the reason in /v2/health/ready and in the
    log, and the others go on.

    Inputs: scan (BYTES), each element a DICOM, NIfTI, PNG or JPEG file or a zip of a series, read as medopt predict
    reads it (of a case of several images one input for each, under its name: t1, t2); or image (FP32), prepared
    already. Outputs: probabilities, logits, decision, declined (the reason; then
    the numbers are null and the decision is empty); and the hashes of release, model and chain.

    Example: medopt serve runs/phantom

    One scan, as the file is, with the key where the server has one:

    curl -F scan=@scan.dcm -H "X-API-Key: $KEY" http://127.0.0.1:8080/v2/models/STUDY/infer

    The same without a form: --data-binary @scan.dcm -H 'Inference-Header-Content-Length: 0'. GET /openapi.json
    describes every route. With --try a person does it at http://127.0.0.1:8080/try: the answer, its probabilities
    beside the operating point, the heat map or the reason; the page asks for the key, and nothing is kept.

    A new release: put it where the old one is (or turn the symbolic link that RELEASE is), then
    curl -X POST http://127.0.0.1:8080/v2/repository/models/STUDY/load. It is checked first; requests in hand end with
    the old one, none is lost. Batches are as large as medopt tune runtime found best. SIGTERM finishes what is in hand
    within 30 seconds. Beyond this machine a key, --client-ca or --no-auth is asked for.

    models:/STUDY@champion is what MLflow's registry (MLFLOW_TRACKING_URI) has; medopt pull models:/STUDY@champion turns
    the link when another was promoted, then load it as above. Where the registry is gone, the last one serves.
    """
    if (tls_cert is None) != (tls_key is None) or (client_ca and not tls_cert):
        raise ConfigError("TLS takes --tls-cert and --tls-key together, and --client-ca only beside them.")
    folders = [_folder(release, runs) for release in releases]
    from medopt.serving.server.auth import Key
    from medopt.serving.server.limits import MEBI, ServerLimits
    from medopt.serving.server.run import Listeners, ServerTls
    from medopt.serving.server.run import serve as run

    tls = ServerTls(tls_cert, tls_key, client_ca) if tls_cert and tls_key else None
    limits = ServerLimits(
        max_queue=max_queue,
        max_body=max_body_mb * MEBI,
        gather_seconds=gather_ms / 1000,
        read_seconds=read_seconds,
    )
    listeners = Listeners(host, port, None if grpc_port < 0 else grpc_port, tls, try_page)
    run(
        folders,
        model,
        listeners,
        limits,
        Key.read(api_key_file),
        no_auth,
    )


def _folder(release: Path, runs: Path) -> Path:
    """A release's folder; one that is none stays out of service with the reason, and the others go on."""
    try:
        return release_folder(release, runs)
    except ReleaseError:
        return release
