"""The tests in two processes: those that start Ray, one cluster after the other, beside all others.

    python tests/in_two.py [options of pytest]

Tests with Ray wait for processes most of the time. Their output comes when both are done.
"""

import subprocess
import sys
import tempfile

NOTHING = 5
"""pytest's exit status where no test was chosen."""


def main() -> int:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryFile() as file:
        ray = subprocess.Popen([*command, "--part", "ray"], stdout=file, stderr=file)
        try:
            rest = subprocess.run([*command, "--part", "rest"]).returncode
            found = {rest, ray.wait()}
        finally:
            ray.kill()
        file.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(file.read())
    return max(found - {NOTHING}, default=NOTHING)


if __name__ == "__main__":
    raise SystemExit(main())
