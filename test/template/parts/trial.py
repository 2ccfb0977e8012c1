"""scripts/deploy beside the pipeline's host, for a stack of its own, and what it leaves there."""

import json
import subprocess

from pipelines import REGISTRY, Deployment
from support import ROOT, await_true

REPOSITORY = f"{REGISTRY}/group/trial"
PORT = "20300"
STACK = (ROOT / "scripts/stack.yml").read_text()


class Trial:
    """Runs scripts/deploy in the pipeline's host, for a stack of its own."""

    env = {
        "DEPLOY_STACK": "trial",
        "DEPLOY_PORT": PORT,
        "DEPLOY_PORTS": "20310-20319",
        "DEPLOY_ADDRESS": "127.0.0.1",
        "DEPLOY_PUBLISH_MODE": "host",
        "DEPLOY_TIMEOUT": "60",
    }

    def __init__(self, pipeline, releases):
        self.pipeline, self.releases = pipeline, releases
        pipeline.put_source("/tmp/trial")

    def command(self, *arguments, **env):
        code = 'echo $$ > pid; exec python3 scripts/deploy "$@"'
        command = ("sh", "-c", code, "sh", *arguments)
        return self.pipeline.deployer("/tmp/trial", *command, env={**self.env, **env})

    def deploy(self, release, **env):
        """Deploy a release by its name, or an image."""
        return self.run(DEPLOY_IMAGE=self.releases.get(release, release), **env)

    def start(self, release, **env):
        """Start a deployment; return the process."""
        command = self.command(DEPLOY_IMAGE=self.releases.get(release, release), **env)
        return subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def kill(self, signal="KILL"):
        """Send a signal to the deployment that runs."""
        code = f'kill -{signal} "$(cat /tmp/trial/pid)"'
        self.pipeline.docker("exec", "deployer", "sh", "-c", code)

    def run(self, *arguments, **env):
        return Deployment(self.command(*arguments, **env), timeout=200)

    def declare(self, text=STACK):
        """Write scripts/stack.yml."""
        self.pipeline.host("sh", "-c", "cat > /tmp/trial/scripts/stack.yml", input=text)

    def inspect(self, format="{{json .Spec}}", service="trial_server"):
        return self.pipeline.docker(
            "service", "inspect", f"--format={format}", service, check=False
        ).strip()

    def spec(self):
        """Return what Swarm has of the service, but for the name of the deployment."""
        spec = json.loads(self.inspect())
        del spec["Labels"]["deployment"], spec["Labels"]["deploy_image"]
        return spec

    def tasks(self):
        return self.pipeline.docker("service", "ps", "--quiet", "trial_server").split()

    def services(self):
        names = self.pipeline.docker("service", "ls", "--format={{.Name}}").split()
        return sorted(name for name in names if name.startswith("trial"))

    def records(self):
        """Return the releases that were verified, the oldest first."""
        return [it["release"] for it in self.read_records()]

    def newest(self):
        return self.read_records()[-1]

    def read_records(self):
        names = self.pipeline.docker("config", "ls", "--format={{.Name}}").split()
        names = [name for name in names if name.startswith("trial")]
        names.sort(key=lambda name: int(name.rpartition(".")[2]))
        show = ("config", "inspect", '--format={{printf "%s" .Spec.Data}}')
        return [json.loads(self.pipeline.docker(*show, name)) for name in names]

    def secrets(self):
        return self.pipeline.docker("secret", "ls", "--format={{.Name}}").split()

    def answering(self, port=PORT):
        """Return the release that answers on a port of the host, or None."""
        return self.pipeline.answering(port)

    def in_service(self, *command, service="trial_server"):
        """Run a command in a replica; return what it prints."""
        [container] = self.pipeline.docker("ps", "--quiet", f"--filter=name={service}\\.").split()
        return self.pipeline.docker("exec", container, *command)

    def images(self, repository):
        format = "--format={{.Repository}}@{{.Digest}}"
        return self.pipeline.docker("image", "ls", "--digests", format, repository).split()

    def remove(self):
        """Remove all that the tests have made."""
        for name in self.services():
            self.pipeline.docker("service", "rm", name, check=False)
        for kind in ("config", "secret"):
            for name in self.pipeline.docker(kind, "ls", "--format={{.Name}}").split():
                if name.startswith("trial"):
                    self.pipeline.docker(kind, "rm", name)

        def gone():
            names = self.pipeline.docker("network", "ls", "--format={{.Name}}").split()
            names = [name for name in names if name.startswith("trial")]
            for name in names:
                self.pipeline.docker("network", "rm", name, check=False)
            return not names and not self.pipeline.docker("ps", "--quiet", "--filter=name=trial")

        await_true(gone, seconds=30)
