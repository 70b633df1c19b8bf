"""Campaigns again and again, and records when it considers itself leader: candidate.py SIDECAR ELECTION NAME LOG."""

import json
import os
import sys
import time

from tenure_sidecar import Leadership, LeadershipLost, SidecarError, boot_time

sidecar, election, name, path = sys.argv[1:]
log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def record(**event):
    os.write(log, (json.dumps({"client": name, **event}) + "\n").encode())


def work(leadership):
    for _ in range(300):
        before = boot_time()
        leadership.check()
        # It considers itself leader until then, whatever happens to it, unless it renews.
        # Not later than the true end, also if this process is stopped in between.
        until = before + leadership.valid_for()
        record(token=leadership.token, first=before, last=before, until=until, pid=os.getpid())
        if leadership.stopping.is_set():
            return
        time.sleep(0.01)


while True:
    try:
        with Leadership(election, sidecar=sidecar, value=name, lease=3) as leadership:
            why = None
            try:
                work(leadership)
            except LeadershipLost as lost:
                why = str(lost)
            # Before it resigns.
            record(token=leadership.token, stopped=boot_time(), why=why)
    except (SidecarError, OSError) as error:
        record(error=repr(error))
        time.sleep(0.1)
