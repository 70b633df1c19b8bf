"""What locks of kazoo cost: kazoo.recipe.lock, upon which its Election is a thin layer."""

import argparse
import gc
import json
import os
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from kazoo.client import KazooClient
from kazoo.exceptions import CancelledError

QUIET = 0.150
SOON = 0.015
TIMEOUT = 30.0
IDLE_TIMEOUT = 5.0
# Threads that lead many elections.
AT_ONCE = 64

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--endpoint", default="127.0.0.1:2181")
parser.add_argument("--quick", action="store_true", help="fewer rounds")
parser.add_argument("--only", default="", help="only measures that have this in their names")
options = parser.parse_args()

# All elections of this run are below it.
ROOT = f"/peers-kazoo-{time.time_ns():x}"


def main():
    if wants("campaign, session held"):
        held(rounds(300))
    if wants("campaign from nothing"):
        from_nothing(rounds(300))
    handover("handover, 2 candidates", 2, QUIET)
    handover("handover, 2 candidates, soon", 2, SOON)
    handover("handover, 50 candidates", 50, QUIET)
    many(rounds(1_000))
    idle()
    client = connect()
    client.delete(ROOT, recursive=True)
    end(client)


def held(rounds):
    client = connect()
    lead(client, "warm").release()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        lock = lead(client, "held")
        times.append(time.perf_counter() - begun)
        lock.release()
    end(client)
    tell_times("campaign, session held", times)


def from_nothing(rounds):
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        client = connect()
        lock = lead(client, "nothing")
        times.append(time.perf_counter() - begun)
        lock.release()
        end(client)
    tell_times("campaign from nothing", times)


class Waiting:
    """A candidate in a thread, and when it came to lead."""

    def __init__(self, client, name):
        self.client = client
        self.lock = client.Lock(path(name), "candidate")
        self.at = None
        self.thread = threading.Thread(target=self._acquire)
        self.thread.start()

    def _acquire(self):
        try:
            self.lock.acquire()
            self.at = time.perf_counter()
        except CancelledError:
            pass

    def led(self):
        self.thread.join()
        return self.at

    def leave(self):
        self.lock.cancel()
        self.thread.join()
        end(self.client)


def handover(measure, candidates, quiet):
    if not wants(measure):
        return
    election = f"over-{candidates}-{quiet}"
    looks = connect()
    queue = deque()
    for count in range(1, candidates + 1):
        queue.append(Waiting(connect(), election))
        until_entered(looks, election, count)
    queue[0].led()
    times = []
    for _ in range(rounds(100)):
        time.sleep(quiet)
        leads = queue.popleft()
        begun = time.perf_counter()
        leads.lock.release()
        times.append(queue[0].led() - begun)
        # The one that resigned stands again, as the last.
        queue.append(Waiting(leads.client, election))
        until_entered(looks, election, candidates)
    for waiting in reversed(queue):
        waiting.leave()
    end(looks)
    tell_times(measure, times)


def many(count):
    leads = f"many: lead {count}, each"
    holds = f"many: memory of one of {count} held, bytes"
    waits = f"many: memory of one of {count} waiting, bytes"
    take_over = f"many: take over {count}, each"
    if not any(map(wants, (leads, holds, waits, take_over))):
        return
    names = [f"many-{n}" for n in range(count)]
    holder = connect()
    lead(holder, "many-warm")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: None, range(AT_ONCE)))
        before = memory()
        begun = time.perf_counter()
        held = list(pool.map(lambda name: lead(holder, name), names))
        tell(leads, 1, (time.perf_counter() - begun) * 1e6 / count)
        tell(holds, 1, max(memory() - before, 0) / count)

    other = connect()
    lead(other, "many-warm-2").release()
    before = memory()
    waiting = [Waiting(other, name) for name in names]
    for name in names:
        until_entered(holder, name, 2)
    time.sleep(2)
    tell(waits, 1, max(memory() - before, 0) / count)

    begun = time.perf_counter()
    end(holder)
    for one in waiting:
        one.led()
    tell(take_over, 1, (time.perf_counter() - begun) * 1e6 / count)
    end(other)
    del held


def idle():
    measure = "idle: requests a second of a leader and ten followers, TTL 5 s"
    if not wants(measure):
        return
    looks = connect()
    queue = []
    for count in range(1, 12):
        queue.append(Waiting(connect(IDLE_TIMEOUT), "idle"))
        until_entered(looks, "idle", count)
    end(looks)
    time.sleep(IDLE_TIMEOUT)
    span = 10 if options.quick else 60
    before = requests()
    time.sleep(span)
    asked = (requests() - before) / span
    for waiting in reversed(queue):
        waiting.leave()
    tell(measure, 1, asked)


def connect(timeout=TIMEOUT):
    client = KazooClient(hosts=options.endpoint, timeout=timeout)
    client.start()
    return client


def end(client):
    client.stop()
    client.close()


def lead(client, name):
    lock = client.Lock(path(name), "candidate")
    lock.acquire()
    return lock


def path(name):
    return f"{ROOT}/{name}"


def until_entered(client, name, count):
    while client.exists(path(name)) is None or len(client.get_children(path(name))) < count:
        time.sleep(0.002)


def memory():
    """What the process has in memory, threads' stacks and all."""
    time.sleep(1)
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def requests():
    """How many packets ZooKeeper has received."""
    return sum(requests_of(server) for server in options.endpoint.split(","))


def requests_of(server):
    host, port = server.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"srvr")
        with connection.makefile() as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("Received: "))


def wants(measure):
    return options.only in measure


def rounds(full):
    return max(full // 10, 5) if options.quick else full


def tell_times(measure, times):
    times.sort()
    p50, p99 = (times[round((len(times) - 1) * share)] * 1e6 for share in (0.5, 0.99))
    tell(measure, len(times), p50, p99)


def tell(measure, rounds, p50, p99=None):
    """Prints the median and the 99th percentile, or the one value that there is."""
    if wants(measure):
        row = {"peer": "kazoo Lock", "store": "zookeeper", "measure": measure, "rounds": rounds}
        row |= {"p50_us": round(p50, 1), "p99_us": round(p50 if p99 is None else p99, 1)}
        print(json.dumps(row), flush=True)


main()
