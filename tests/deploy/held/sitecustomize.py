"""On the path of jobs of the tests: a driver stands still behind its third checkpoint while `held` is above its job's folder."""

import os
import signal
import sys

if "dlscale" in map(os.path.basename, sys.orig_argv) and {"run", "resume"} & set(sys.orig_argv):
    from dlscale.batch.recorder import Recorder

    _emit, _saved = Recorder.emit, []

    def emit(self, event):
        _emit(self, event)
        if event.word == "checkpoint":
            _saved.append(event)
            if len(_saved) == 3 and any((above / "held").exists() for above in self.job.folder.parents):
                os.kill(os.getpid(), signal.SIGSTOP)

    Recorder.emit = emit
