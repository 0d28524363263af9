"""The TensorFlow reference in a process of its own, asked for one time at a time."""

import subprocess
from pathlib import Path


class Reference:
    """Its steps and its codec; waits while we run. What python and folder are: reference_steps.py."""

    def __init__(self, python: str, folder: str, threads: int):
        script = Path(__file__).with_name("reference_steps.py")
        command = [python, str(script), folder, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def times(self, name: str) -> tuple[float, float]:
        """Wall and CPU time of one call; the first of a name builds it and warms it up, too."""
        print(name, file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise SystemExit("the reference ended; its error stands above")
        wall, cpu = answer.split()
        return float(wall), float(cpu)
