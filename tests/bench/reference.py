"""The TensorFlow reference in another process, for one measurement at a time."""

import subprocess
from pathlib import Path


class Reference:
    """Times its steps and codec on request, else waits. python, folder: see reference_steps.py."""

    def __init__(self, python: str, folder: str, threads: int):
        script = Path(__file__).with_name("reference_steps.py")
        command = [python, str(script), folder, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def times(self, name: str) -> tuple[float, float]:
        """Wall and CPU time of one call; the first call of a name also builds it and warms it up."""
        print(name, file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise SystemExit("the reference ended; see its error above")
        wall, cpu = answer.split()
        return float(wall), float(cpu)
