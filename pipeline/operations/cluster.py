"""A Ray cluster from outside: sending a job, following its log to its end, stopping it, over Ray's Jobs API.  [ray]

Runs in the submitter's process, which need not be part of the cluster. Whatever fails on the way is a ClusterError
within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from pipeline.errors import ClusterError, SubmissionError
from pipeline.operations.submit import STOP_WAIT_SECONDS, STOP_WAIT_VARIABLE, STOPPED_WITHIN_SECONDS

TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_SECONDS, ANSWER_SECONDS, UPLOAD_SECONDS = 5, 10, 60
SILENCE_SECONDS = 30
"""A log that says nothing for so long: is the cluster still there?"""
POLL_SECONDS = 0.5
KEPT_CHARACTERS = 1_000_000
ANSWER_LINES = 50
"""The job's answer is looked for among so many last lines: a library may say something after it."""

Write = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """A job that is over: its status, the exit code of its command and the last line of JSON that it wrote."""

    job_id: str
    status: str
    exit_code: int
    answer: str


class _Client(JobSubmissionClient):
    """Ray's client, which by itself waits for an answer for ever."""

    patience = CONNECT_SECONDS, ANSWER_SECONDS

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, timeout=self.patience, **options)
        except requests.RequestException as error:
            raise ClusterError(
                f"{self._address}: the cluster does not answer ({_reason(error)}); check the address, which is that of "
                "Ray's dashboard, usually port 8265 of the head, and that the cluster is up"
            ) from error
        except AuthenticationError as error:
            raise ClusterError(f"{self._address}: {_refusal(str(error))}") from error


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of the cluster at `address`, or at RAY_API_SERVER_ADDRESS; it is known to answer.

    Raises: SubmissionError when there is no address, ClusterError when it does not answer or refuses the token.
    """
    chosen = address or os.environ.get(ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS", "")
    if not chosen.startswith(("http://", "https://")):
        seen = f"{chosen!r} is none" if chosen else "there is none"
        raise SubmissionError(
            f"a job needs the address of the cluster's dashboard, and {seen}; write --address http://HEAD:8265, or set "
            f"{ADDRESS_VARIABLE}"
        )
    for module in TALKATIVE:
        logging.getLogger(module).setLevel(logging.WARNING)
    # The variables win over the argument in Ray; a person who wrote --address means it.
    with _variable(ADDRESS_VARIABLE, chosen):
        try:
            client = _Client(chosen)
        except ClusterError:
            raise
        except AuthenticationError as error:
            raise ClusterError(f"{chosen}: {_refusal(str(error))}") from error
        except (requests.RequestException, ConnectionError, RuntimeError, ValueError, KeyError) as error:
            raise ClusterError(
                f"{chosen}: what answers is not Ray's dashboard ({_reason(error)}); check the address and the port"
            ) from error
    client.patience = CONNECT_SECONDS, UPLOAD_SECONDS
    return client


def _refusal(text: str) -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "the cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    if "Invalid" in text or "invalid" in text.split("\n")[0]:
        return "the cluster refuses the token; check RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    return "RAY_AUTH_MODE is token and no token was found; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def _reason(error: BaseException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _explained(client: JobSubmissionClient, what: str) -> Iterator[None]:
    """Turn what the cluster refused into a ClusterError."""
    try:
        yield
    except RuntimeError as error:
        lost = "does not exist" in str(error)
        hint = "; 'atelier jobs list' shows what there is" if lost else ""
        raise ClusterError(f"{client.get_address()}: {what}: {_reason(error)}{hint}") from error


# --- jobs -----------------------------------------------------------------------------------------------------


def send(client: JobSubmissionClient, verb: str, words: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Upload `folder` as the job's directory and start `python -m jobs VERB WORDS` in it; returns the job's id.

    Raises: ClusterError.
    """
    # Named here, so that it can be stopped although the answer has not come.
    job_id = f"atelier-{verb}-{uuid.uuid4().hex[:10]}"
    try:
        with _explained(client, "the job was refused"):
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "jobs", verb, *words]),
                submission_id=job_id,
                runtime_env={"working_dir": str(folder), "env_vars": dict(environment)},
            )
    except (KeyboardInterrupt, SystemExit):
        with contextlib.suppress(ClusterError):
            stop(client, job_id)
        raise
    return job_id


def attend(client: JobSubmissionClient, job_id: str, write: Write) -> Ended:
    """Follow a job to its end, and stop it when this process is told to end. Raises: ClusterError."""
    try:
        return follow(client, job_id, write)
    except (KeyboardInterrupt, SystemExit):
        write(f"stopping job {job_id}\n")
        write(f"job {job_id} is {stop(client, job_id)}\n")
        raise


def details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """What the cluster knows of a job. Raises: ClusterError."""
    with _explained(client, f"job {job_id}"):
        return client.get_job_info(job_id)


def list_jobs(client: JobSubmissionClient) -> list[dict[str, Any]]:
    """The jobs that were submitted to the cluster, the newest first."""
    with _explained(client, "its jobs cannot be listed"):
        jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [
        {
            "job_id": job.submission_id,
            "status": job.status.value,
            "started": _utc(job.start_time),
            "ended": _utc(job.end_time),
            "exit_code": job.driver_exit_code,
            "command": job.entrypoint,
        }
        for job in jobs
    ]


def _utc(milliseconds: int | None) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000)) if milliseconds else None


def show_log(client: JobSubmissionClient, job_id: str, write: Write, to_the_end: bool = False) -> dict[str, Any]:
    """Hand what a job wrote to `write`, on request until it ends; returns how it stands. Raises: ClusterError."""
    if to_the_end:
        follow(client, job_id, write)
    else:
        with _explained(client, f"job {job_id}"):
            write(client.get_job_logs(job_id))
    job = details(client, job_id)
    return {"status": job.status.value, "exit_code": job.driver_exit_code}


def stop(client: JobSubmissionClient, job_id: str) -> str:
    """Stop a job, wait until its processes are gone, and return its status. Raises: ClusterError."""
    with _explained(client, f"job {job_id} cannot be stopped"):
        client.stop_job(job_id)
    start = time.monotonic()
    while True:
        job = details(client, job_id)
        status: JobStatus = job.status
        if status.is_terminal():
            return str(status.value)
        waited = time.monotonic() - start
        if waited > _killed_after(job) + STOPPED_WITHIN_SECONDS:
            raise ClusterError(
                f"{client.get_address()}: job {job_id} is {status.value} {waited:.0f} s after it was told to stop; "
                f"look with 'atelier jobs logs {job_id}'"
            )
        time.sleep(POLL_SECONDS)


def _killed_after(job: JobDetails) -> float:
    """Seconds that Ray waits for a job that is to stop."""
    try:
        return float((job.runtime_env or {}).get("env_vars", {})[STOP_WAIT_VARIABLE])
    except (KeyError, ValueError):
        return STOP_WAIT_SECONDS


def follow(client: JobSubmissionClient, job_id: str, write: Write) -> Ended:
    """Hand a job's log to `write` as it comes, until the job is over. Raises: ClusterError when the cluster is lost."""
    log = _Log(write)
    job = asyncio.run(_follow(client, job_id, log))
    answer = log.answer()
    if job.status == JobStatus.STOPPED:
        answer, code = _answer(job_id, "was stopped"), 1
    elif job.driver_exit_code is None:
        # The command was never run: its directory or its processes could not be made.
        answer, code = _answer(job_id, f"failed before its command ran: {job.message}"), 1
    else:
        # A command that a signal ended has a negative code; a shell would say 128 and more.
        code = job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code
        answer = answer or _answer(job_id, f"ended with exit code {code} and without an answer; its log says why")
    return Ended(job_id, str(job.status.value), code, answer)


def _answer(job_id: str, text: str) -> str:
    return json.dumps({"error": f"job {job_id} {text}", "kind": "ClusterError"}, ensure_ascii=False)


class _Log:
    """What came of a log: each character is written once, though the log is read from its start when it breaks."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self.seen = 0
        self.tail = ""

    def take(self, position: int, text: str) -> int:
        """Write what of `text`, which begins at `position`, is new; returns the position after it."""
        new = text[max(0, self.seen - position) :]
        if new:
            self.write(new)
            self.tail = (self.tail + new)[-KEPT_CHARACTERS:]
            self.seen += len(new)
        return position + len(text)

    def answer(self) -> str | None:
        """The last line that is a JSON object."""
        for line in reversed(self.tail.splitlines()[-ANSWER_LINES:]):
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    json.loads(line)
                    return line
        return None


async def _follow(client: JobSubmissionClient, job_id: str, log: _Log) -> JobDetails:
    while True:
        # The agent that serves the log may be restarted while the job goes on.
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await _read(client, job_id, log)
        job = details(client, job_id)
        if job.status.is_terminal():
            return job
        await asyncio.sleep(POLL_SECONDS)


async def _read(client: JobSubmissionClient, job_id: str, log: _Log) -> None:
    """Read the log from its start to its end, or until the connection breaks."""
    position = 0
    chunks = client.tail_job_logs(job_id)
    while True:
        coming = asyncio.ensure_future(anext(chunks))
        while not (await asyncio.wait({coming}, timeout=SILENCE_SECONDS))[0]:
            details(client, job_id)
        try:
            position = log.take(position, coming.result())
        except StopAsyncIteration:
            return
        except RuntimeError:  # Ray's word for a connection that broke
            return
