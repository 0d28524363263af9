"""Run a training script unchanged, and record the batches that each of its train workers receives.

    python tests/integration/recorded.py pipelines/full.py tiny --output FOLDER ...

Writes FOLDER/seen-<stage>-<rank>.jsonl, one line per batch: time, host, positions, samples. FOLDER must be absolute.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.training import trainer, worker


def recording_worker(job: worker.TrainJob) -> None:
    """`jobs.training.worker.train_worker` that records the batches which the loop reads."""
    import json
    import socket
    import time
    from pathlib import Path

    from jobs.training import worker

    stream = worker.RaySession.stream

    def recorded(self, *args):
        with Path(job.config.output, f"seen-{job.stage}-{self.rank}.jsonl").open("a", buffering=1) as lines:
            for batch in stream(self, *args):
                seen = {name: batch[name].tolist() for name in ("position", "sample")}
                lines.write(json.dumps({"time": time.time(), "host": socket.gethostname()} | seen) + "\n")
                yield batch

    worker.RaySession.stream = recorded
    worker.train_worker(job)


if __name__ == "__main__":
    trainer.train_worker = recording_worker  # pickled by value, since workers cannot import __main__
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
