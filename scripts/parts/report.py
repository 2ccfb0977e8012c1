"""What scripts/pipeline shows of gitlab-ci-local's log. Each line of that begins with its seconds:

12.34 test   > 1 failed, 63 passed in 8.31s
"""

import re
from itertools import pairwise

# What gitlab-ci-local says of its own work stands in the log only.
NOISE = re.compile(
    r"$|parsing and |json schema |pipeline finished | (PASS|FAIL|WARN) |  > |    at |\S+ +also see "
    r"|\S+ +(copied|exported|imported|started|environment:|service image: .* passed) "
)
# Twelve digits of a digest are enough there; what the scripts print stays as it is.
LONG = re.compile(r"(^\S+ +(?:starting|pulled) \S+@sha256:\w{12})\w+")
# A traceback that is indented, as Tornado does, and the message above it.
TRACEBACK = re.compile(
    r"^(?:\S.*\n(?:[ ].*\n)*?)?([ ]*)Traceback .*\n(?:\1[ ].*\n)*\1\S.*", re.MULTILINE
)
STARTED = re.compile(r"(.+?) +started service image: (\S+) with aliases: ([^, ]+)")


def shown(line, silence):
    """Return whether a person wants to see a line, which comes after so many seconds of silence."""
    # gitlab-ci-local says this each ten seconds.
    if line.endswith("> still running...\n"):
        return silence > 60
    return not NOISE.match(line)


class Job:
    """What the log has of a job."""

    def __init__(self, log, name):
        self.name, self.environment, self.lines = name, name, []
        found = re.findall(rf"^ *([\d.]+) {re.escape(name)} +(.*)$", log, re.MULTILINE)
        for seconds, text in found:
            # This line comes when all jobs have ended.
            if environment := re.match(r"environment: \{ name: ([^, ]+)", text):
                self.environment = environment[1]
            else:
                self.lines.append((float(seconds), text))
        self.text = "\n".join(text for _, text in self.lines)
        self.output = re.findall(r"^> (?!still running\.\.\.$)(.*)", self.text, re.MULTILINE)

    def result(self):
        if not self.lines:
            return "not run"
        passed = re.search("^finished in (?!.* (FAIL|WARN) )", self.text, re.MULTILINE)
        return "passed" if passed else "failed"

    def sections(self):
        """Return the seconds in which it got ready, ran its script, and handed on files."""
        first, last = self.lines[0][0], self.lines[-1][0]
        script, end = (
            next((seconds for seconds, text in self.lines if text.startswith(start)), last)
            for start in ("$ ", "finished in ")
        )
        return [after - before for before, after in pairwise((first, script, end, last))]

    def suspects(self, own):
        """Return the aliases of those services whose log may say why the job failed.

        These are the project's `own` images, and what did not begin to listen: no healthy database.
        """
        started = r"^started service image: (\S+) with aliases: ([^, ]+)"
        return [
            alias
            for image, alias in re.findall(started, self.text, re.MULTILINE)
            if image.startswith(own) or f"service image: {image} healthcheck failed" in self.text
        ]

    def cause(self):
        """Return the lines that say why it failed: pytest's, ruff's, a build's, or its last."""
        text = "".join(f"{line}\n" for line in self.output)
        summary = re.split("^=+ short test summary info =+$", text, flags=re.MULTILINE)[1:]
        if told := re.findall("^(?:FAILED|ERROR|=|!|test: ).*", "".join(summary), re.MULTILINE):
            return told if len(told) < 12 else [*told[:10], "...", told[-1]]
        if findings := re.findall(r"^(?:\S+:\d+:\d+: |test: ruff ).*", text, re.MULTILINE):
            return findings[-10:]
        # Below a step that failed, BuildKit repeats its last lines, each with its seconds.
        if steps := re.findall(r"^-+\n > .*\n((?:.*\n)*?)-+$", text, re.MULTILINE):
            return re.sub(r"^[\d.]+ ", "", steps[-1], flags=re.MULTILINE).splitlines()
        return [line for line in self.output if re.search(r"\w", line)][-3:]

    def releases(self, ports):
        """Yield where it has deployed to. This machine reaches only these `ports` of the host."""
        for line, url in re.findall(r"^> (Release \S+ answers at (\S+))$", self.text, re.MULTILINE):
            notes = [self.environment] if self.environment != "production" else []
            notes += ["only inside the container"] if port_of(url) not in ports else []
            yield f"{line} ({', '.join(notes)})" if notes else line


def port_of(url):
    scheme, port = re.match(r"(https?)://.*?(?::(\d+))?(?:/|$)", url).groups()
    return int(port or {"http": 80, "https": 443}[scheme])


def last_lines(text):
    """Return the end of a service's log: its last traceback, below the line that it belongs to."""
    found = [match[0] for match in TRACEBACK.finditer(text)]
    return found[-1].splitlines()[-20:] if found else text.splitlines()[-5:]


def table(jobs, passed, seconds):
    """Return the table of the jobs: how each has ended, and its seconds."""
    width = max(len(name) for name in ("pipeline", *(job.name for job in jobs)))
    rows = [f"{'job':{width}} result    prepare    script artifacts     total"]
    for job in jobs:
        parts = job.sections() if job.lines else []
        cells = [f"{part:8.1f} s" for part in (*parts, sum(parts)) if parts]
        rows.append(f"{job.name:{width}} {job.result():7}{''.join(cells)}")
    return [*rows, f"{'pipeline':{width}} {'passed' if passed else 'failed '} {seconds:38.1f} s"]


def log_of(here, job, alias):
    """Return the file that has the log of a job's service."""
    return here / f"{job}-{alias}.log".replace("/", "-")


def closing(here, names, passed, seconds, registry, ports):
    """Yield the lines that end a push. Why a job has failed comes last."""
    log = (here / "log").read_text(encoding="utf-8")
    jobs = [Job(log, name) for name in names]
    failed = [job for job in jobs if job.result() == "failed"]
    for job in failed:
        for alias in job.suspects(registry):
            file = log_of(here, job.name, alias)
            yield f"\nThe log of {alias} in the job {job.name} ({file}) ends:"
            yield from last_lines(file.read_text(encoding="utf-8", errors="replace"))
    yield ""
    yield from table(jobs, passed, seconds)
    results = here / "source/reports/junit.xml"
    if results.exists():
        yield f"Test results: {results}; coverage: coverage.xml beside it"
    yield f"Log: {here}/log"
    for job in sorted(jobs, key=lambda job: job.environment != "production"):
        yield from job.releases(ports)
    for job in failed:
        yield f"\nThe job {job.name} failed:"
        # Without output, it did not get its images.
        cause = job.cause() or re.findall("Error response from daemon: .*", log)
        yield from (f"    {line}" for line in cause)
