"""A candidate of kazoo's Election: leads until it is told to resign. Arguments: hosts, path, id, file."""

import os
import sys
import time

from kazoo.client import KazooClient

hosts, path, identifier, resign = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=10)
client.start()
election = client.Election(path, identifier)


def lead():
    print("leads", flush=True)
    while not os.path.exists(resign):
        time.sleep(0.01)


print("stands", flush=True)
election.run(lead)
print("resigned", flush=True)
client.stop()
