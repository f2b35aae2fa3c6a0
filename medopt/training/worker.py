"""A process that helps another one train, which has started it: python -m medopt.training.worker."""

from __future__ import annotations

import sys

from medopt.config import Training
from medopt.core import signals
from medopt.core.errors import MedoptError, TrainingError
from medopt.training.engine import Hardware
from medopt.training.processes import follow


def main(words: list[str]) -> int:
    """Help with the accelerator, precision, devices, nodes and strategy that the words name; the exit code.

    What stops all processes is told by the first of them, and only what this one alone knows is told here.
    """
    accelerator, precision, devices, nodes, strategy = words
    training = Training.model_validate({"accelerator": accelerator, "precision": precision})
    hardware = Hardware(int(devices), int(nodes), "fsdp" if strategy == "fsdp" else "ddp")
    signals.listen()
    try:
        follow(training, hardware)
    except TrainingError as error:
        return error.exit_code
    except MedoptError as error:
        sys.stderr.write(f"{type(error).__name__} in a helping process: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
