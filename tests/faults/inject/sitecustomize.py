"""On PYTHONPATH of a run under test: makes the segmentation loss NaN at the step in INJECT_NAN.

`INJECT_NAN=7`: at step 7, once; a file in INJECT_FOLDER records that it has happened. `INJECT_NAN=7!`: every time.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path


class Patch(importlib.abc.MetaPathFinder):
    """Import hook that changes jobs.segmentation."""

    def find_spec(self, name, path, target=None):
        if name != "jobs.segmentation":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)  # stay, since `python -m` only finds the module, and forks import it
        run = spec.loader.exec_module

        def changed(module) -> None:
            run(module)
            self.change(module)

        spec.loader.exec_module = changed
        return spec

    def change(self, module) -> None:
        import dataclasses

        where, done = os.environ["INJECT_NAN"], Path(os.environ["INJECT_FOLDER"], "injected")
        step_of_stage = module.STAGE.step

        def step(nets, opts, batch, config, number):
            if number + 1 == int(where.rstrip("!")) and (where.endswith("!") or not done.exists()):
                done.touch()
                batch.x[0, 0, 0, 0] = float("nan")
            return step_of_stage(nets, opts, batch, config, number)

        module.STAGE = dataclasses.replace(module.STAGE, step=step)


if "INJECT_NAN" in os.environ:
    sys.meta_path.insert(0, Patch())
