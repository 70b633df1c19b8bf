"""A client of `tenure serve`, with the standard library only. Linux.

    from tenure_sidecar import Leadership, LeadershipLost

    with Leadership("billing") as leadership:          # waits until this process is elected
        while work_is_left():
            leadership.check()                          # before every step: raises LeadershipLost
            do_a_step(fencing_token=leadership.token)   # send the token with every write

The contract is docs/guide/sidecar.md. What this client takes care of:

1. Validity is counted from before the request was sent, on a clock that runs while the machine is suspended.
2. A lease is renewed in a thread, from a third of its validity on. Without an answer it runs out by itself.
3. What has run out, or was refused, or is being resigned, is never valid again.
4. Resignation is sent only after `check` has begun to fail. The block must have stopped its work by then.
"""

import http.client
import json
import logging
import os
import secrets
import socket
import threading
import time

_log = logging.getLogger(__name__)
_MAX_ANSWER = 1 << 20
_RETRY = 0.2
_OVER = (404, 409, 410, 503)  # there is no such lease, or it is over
_WAIT_MS = 10_000


class LeadershipLost(Exception):
    """This process must not consider itself leader any more."""


class SidecarError(Exception):
    """The sidecar has refused a request."""

    def __init__(self, status, error):
        self.status, self.code = status, error.get("code", "unknown")
        super().__init__(f"{error.get('message', 'no message')} (advice: {error.get('advice', 'none')})")


def boot_time():
    """Seconds on a clock that runs while the machine is suspended. `time.monotonic` does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Leadership:
    """A context manager: entering it campaigns, leaving it resigns.

    sidecar      "http://127.0.0.1:8377", or "unix:/path"; TENURE_SIDECAR or http://127.0.0.1:8377 by default
    value        what others can read of this candidate, for example its address
    token_file   the file with the sidecar's bearer token
    lease        the longest validity of one grant in seconds: 0.5 to 86400, the TTL by default. If this process is killed,
                 another one can lead after this time, so a short one hands over sooner
    patience     how many seconds to wait for the election; None waits for ever

    A warning is logged when the sidecar does not answer, once for each error in a row.
    """

    def __init__(self, election, sidecar=None, value=None, token_file=None, lease=None, patience=None):
        self.election = election
        self.token = None
        self.stopping = threading.Event()  # the sidecar is being stopped: finish soon
        self._sidecar = sidecar or os.environ.get("TENURE_SIDECAR") or "http://127.0.0.1:8377"
        self._value, self._token_file, self._lease, self._patience = value, token_file, lease, patience
        self._lock = threading.Lock()
        self._until = 0.0  # of boot_time
        self._over = None  # why it is not valid any more
        self._lease_id = None
        self._nonce = secrets.token_urlsafe(24)  # the same for every retry
        self._wake = threading.Event()
        self._thread = None
        self._reported = None  # the error that was logged last, until the sidecar answers
        self._pid = None  # of the process that has entered

    def __enter__(self):
        if self._pid is not None:
            raise RuntimeError("a Leadership is entered once: make a new one for each campaign")
        if self._token_file is not None:
            open(self._token_file, encoding="ascii").close()  # raises at once if it cannot be read
        self._pid = os.getpid()
        give_up = None if self._patience is None else boot_time() + self._patience
        try:
            while not self._campaign(give_up):
                pass
        except BaseException:
            if os.getpid() == self._pid:
                self._end("it was not elected")
                self._resign()
            raise
        self._thread = threading.Thread(target=self._renew_until_over, name="tenure-renew", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        if os.getpid() != self._pid:
            return  # a forked child: leadership is the parent's
        self._end("it was resigned")
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)  # it changes nothing any more, so going on is safe
        self._resign()

    def valid_for(self):
        """The seconds for which this process may consider itself leader, unless it renews. Zero if it may not."""
        if os.getpid() != self._pid:
            return 0.0  # a forked child: only the parent leads and renews
        with self._lock:
            left = self._until - boot_time()
            if self._over is None and left <= 0:
                self._over = "its lease was not renewed in time"
            return left if self._over is None else 0.0

    def check(self):
        """Raises LeadershipLost if this process must not consider itself leader. Sends no request."""
        if self.valid_for() <= 0:
            raise LeadershipLost(f"leadership of {self.election} is over: {self._over or 'it is of the parent process'}")

    def _campaign(self, give_up):
        left = None if give_up is None else give_up - boot_time()
        if left is not None and left <= 0:
            raise TimeoutError(f"not elected in {self.election} within {self._patience} s")
        wait_ms = _WAIT_MS if left is None else max(0, min(_WAIT_MS, int(left * 1000)))
        body = {"nonce": self._nonce, "wait_ms": wait_ms}
        if self._value is not None:
            body["value"] = self._value
        if self._lease is not None:
            body["lease_ms"] = int(self._lease * 1000)
        sent = boot_time()
        try:
            # The same nonce again, if the answer is lost: the sidecar returns the same lease.
            answer = self._request("POST", "campaign", body=body, timeout=wait_ms / 1000 + 5)
        except SidecarError as error:
            if error.status == 410:
                # The lease was over before its answer arrived.
                self._forget()
            elif error.status not in (429, 503):
                raise
            time.sleep(_RETRY)
            return False
        except OSError as error:
            self._report(error)
            time.sleep(_RETRY)
            return False
        self._lease_id = answer["lease"]
        if answer["state"] != "elected":
            return False
        self.token = answer["token"]
        self._granted(sent, answer)
        if self._until > boot_time():
            return True
        # It has waited for so long that nothing is left of a validity that counts from before the request.
        self._renew(timeout=5)
        if self.valid_for() > 0:
            return True
        self._resign()
        self._forget()
        return False

    def _forget(self):
        self._nonce, self._lease_id, self._over, self._until = secrets.token_urlsafe(24), None, None, 0.0

    def _renew_until_over(self):
        while True:
            left = self.valid_for()
            if left <= 0:
                return
            self._wake.wait(left / 3)
            left = self.valid_for()
            if left <= 0:
                return
            self._renew(timeout=max(left, 0.05))

    def _renew(self, timeout):
        sent = boot_time()
        try:
            answer = self._request("POST", "renew", timeout=timeout)
        except SidecarError as error:
            if error.status in _OVER:
                self._end(str(error))
            else:
                self._wake.wait(_RETRY)
        except OSError as error:
            self._report(error)
            self._wake.wait(_RETRY)
        else:
            self._granted(sent, answer)

    def _report(self, error):
        if self._reported != str(error):
            _log.warning("the sidecar %s does not answer: %s", self._sidecar, error)
        self._reported = str(error)

    def _granted(self, sent, answer):
        with self._lock:
            until = sent + answer["valid_for_ms"] / 1000
            if self._thread is not None and self._until <= boot_time():
                self._over = self._over or "its lease was not renewed in time"
            if self._over is None:
                self._until = until
        if answer["stopping"]:
            self.stopping.set()

    def _end(self, reason):
        with self._lock:
            self._over = self._over or reason

    def _resign(self):
        if self._lease_id is None:
            return
        try:
            self._request("DELETE", "campaign", timeout=10)
        except (OSError, SidecarError):
            pass  # the lease runs out by itself

    def _request(self, method, action, body=None, timeout=5):
        headers = {}
        if self._lease_id is not None and method + action != "POSTcampaign":
            headers["Tenure-Lease"] = self._lease_id
        if self._token_file is not None:
            with open(self._token_file, encoding="ascii") as file:
                headers["Authorization"] = "Bearer " + file.read().strip()
        if body is not None:
            body = json.dumps(body)
            headers["Content-Type"] = "application/json"
        if self._sidecar.startswith("unix:"):
            connection = _UnixConnection(self._sidecar[len("unix:"):], timeout)
        else:
            address = self._sidecar.removeprefix("http://").rstrip("/")
            connection = http.client.HTTPConnection(address, timeout=timeout)
        try:
            connection.request(method, f"/v1/elections/{self.election}/{action}", body, headers)
            response = connection.getresponse()
            text = response.read(_MAX_ANSWER)
            answer = json.loads(text)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"no answer of the sidecar: {error!r}") from error
        finally:
            connection.close()
        self._reported = None
        if response.status >= 400:
            raise SidecarError(response.status, answer.get("error", {}))
        return answer
