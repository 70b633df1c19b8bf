"""A candidate of kazoo's Election. It resigns when the file exists. Arguments: hosts, path, id, file."""

import os
import sys
import time

from kazoo.client import KazooClient

hosts, path, identifier, resign_file = sys.argv[1:]
client = KazooClient(hosts=hosts, timeout=10)
client.start()
election = client.Election(path, identifier)


def lead():
    print("leads", flush=True)
    while not os.path.exists(resign_file):
        time.sleep(0.01)


print("campaigns", flush=True)
election.run(lead)
print("resigned", flush=True)
client.stop()
