"""deploy/kubernetes: valid, consistent, and its commands do on this machine what they are to do in a cluster.

The Job's two pods are two processes here, and the Deployment's arguments are those of the embedded server.
"""

import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import manifests
import numpy as np
import pytest
import yaml
from conftest import ROOT, environment, kill_all, wait_until
from manifests import MANIFESTS, Resource

from pipeline.triton import client, container, ports, repository, server
from pipeline.triton.file_store import FileStore
from pipeline.triton.server import Server, ServerOptions

ALL = manifests.choices()
ADAPTER, MONITOR = (
    yaml.safe_load((MANIFESTS / "prometheus" / name).read_text()) for name in ("adapter-values.yaml", "podmonitor.yaml")
)


def pods(resources: list[Resource]) -> list[Resource]:
    """The pod templates."""
    templates = []
    for resource in resources:
        spec = resource.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if resource["kind"] == "CronJob" else spec
        if resource["kind"] == "Pod":
            templates.append(resource)
        elif "template" in spec:
            templates.append(spec["template"])
    return templates


def one(resources: list[Resource], kind: str) -> Resource:
    (found,) = (resource for resource in resources if resource["kind"] == kind)
    return found


def container_of(*folders: str) -> dict[str, Any]:
    (pod,) = pods(manifests.built(MANIFESTS, *folders))
    (found,) = pod["spec"]["containers"]
    return dict(found)


def expanded(texts: list[str], variables: dict[str, str]) -> list[str]:
    """As the kubelet does it: $(NAME)."""
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text) for text in texts]


def plain_variables(of: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in of["env"] if "value" in entry}


def test_every_manifest_is_valid() -> None:
    assert list(manifests.problems(MANIFESTS)) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        ("base/deployment.yaml", "readOnlyRootFilesystem", "readonlyRootFilesystem", "readonlyRootFilesystem"),
        ("training/job.yaml", "completions: 2", 'completions: "2"', "spec.completions: '2' is not of type 'integer'"),
        ("base/service.yaml", "kind: Service", "kind: Servce", "schema for kind Servce"),
        ("volume/deployment.yaml", "name: triton\nspec", "name: titron\nspec", "no apps/v1 Deployment titron to patch"),
        ("base/kustomization.yaml", "  - service.yaml\n", "", "base/service.yaml: no kustomization.yaml names it"),
        ("base/kustomization.yaml", "service.yaml", "servce.yaml", "No such file or directory"),
        ("gpu/kustomization.yaml", "patches:", "patchesStrategicMerge:", "patchesStrategicMerge is not known"),
        ("pull/cronjob.yaml", "kind: CronJob", "kind: [", "while parsing"),
    ],
)
def test_a_fault_in_a_manifest_is_found(tmp_path: Path, file: str, before: str, after: str, problem: str) -> None:
    root = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, root)
    content = (root / file).read_text()
    assert before in content
    (root / file).write_text(content.replace(before, after))
    assert any(problem in found for found in manifests.problems(root))


if shutil.which("kubectl"):

    @pytest.mark.parametrize("choice", ALL, ids="+".join)
    def test_kustomize_puts_the_same_together(tmp_path: Path, choice: tuple[str, ...]) -> None:
        root = tmp_path / "kubernetes"
        shutil.copytree(MANIFESTS, root)
        folder, *components = choice
        (root / "mine").mkdir()
        mine = {"resources": [f"../{folder}"], "components": [f"../{component}" for component in components]}
        (root / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(mine))
        theirs, ours = yaml.safe_load_all(kustomized(root / "mine")), manifests.built(MANIFESTS, *choice)
        assert sorted(map(normal, theirs)) == sorted(map(normal, ours))

    def test_the_guides_own_kustomizations_are_some(tmp_path: Path) -> None:
        guide = (ROOT / "doc" / "Deploy.md").read_text().partition("## Kubernetes")[2]
        shutil.copytree(MANIFESTS, tmp_path / "deploy" / "kubernetes")
        for folder, block in zip(("zoo", "zoo-training"), guide.split("```yaml\n")[1:], strict=True):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "kustomization.yaml").write_text(block.partition("```")[0])
        resources = list(yaml.safe_load_all(kustomized(tmp_path / "zoo")))
        (box,) = one(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
        assert box["readinessProbe"]["httpGet"]["path"] == "/v2/models/mnist_cnn_v1-mnist_v1/ready"
        assert box["resources"]["limits"]["nvidia.com/gpu"] == 1
        resources = list(yaml.safe_load_all(kustomized(tmp_path / "zoo-training")))
        (box,) = one(resources, "Job")["spec"]["template"]["spec"]["containers"]
        assert box["image"] == "registry.example.org/zoo:1"

    def kustomized(folder: Path) -> str:
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def normal(resource: Resource) -> str:
        """Kustomize puts what a patch adds to a list of names before what was there; the order has no meaning."""

        def sorted_lists(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: sorted_lists(entry) for key, entry in value.items()}
            if isinstance(value, list) and all(isinstance(entry, dict) and "name" in entry for entry in value):
                return sorted(map(sorted_lists, value), key=lambda entry: str(entry["name"]))
            return value

        return str(yaml.safe_dump(sorted_lists(resource), sort_keys=True))


@pytest.mark.parametrize("choice", ALL, ids="+".join)
def test_what_names_another_thing_names_one_that_is_there(choice: tuple[str, ...]) -> None:
    resources = manifests.built(MANIFESTS, *choice)
    (pod,) = pods(resources)
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    (box,) = spec["containers"]
    numbers = {port["name"]: port["containerPort"] for port in box.get("ports", ())}
    for resource in resources:
        own = resource.get("spec", {})
        if resource["kind"] == "Service":
            assert own["selector"].items() <= labels.items()
            assert all(numbers[port["targetPort"]] == port["port"] for port in own.get("ports", ()))
        elif resource["kind"] == "NetworkPolicy":
            assert own["podSelector"]["matchLabels"].items() <= labels.items()
            wanted = {port["port"] for rule in own["ingress"] for port in rule.get("ports", ())}
            assert wanted == set(numbers.values())
        elif resource["kind"] in ("Deployment", "PodDisruptionBudget"):
            assert own["selector"]["matchLabels"] == labels
        elif resource["kind"] == "HorizontalPodAutoscaler":
            target = {"kind": "Deployment", "name": "triton", "apiVersion": "apps/v1"}
            assert own["scaleTargetRef"] == target
            assert "replicas" not in one(resources, "Deployment")["spec"]
    assert {mount["name"] for mount in box["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert probe not in box or box[probe]["httpGet"]["port"] in numbers
    claims = {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    assert claims <= {one(manifests.built(MANIFESTS, "volume"), "PersistentVolumeClaim")["metadata"]["name"]}
    accounts = {one(manifests.built(MANIFESTS, "base"), "ServiceAccount")["metadata"]["name"]}
    assert spec.get("serviceAccountName", "triton") in accounts


@pytest.mark.parametrize("choice", ALL, ids="+".join)
def test_pods_meet_the_restricted_pod_security_standard(choice: tuple[str, ...]) -> None:
    (pod,) = pods(manifests.built(MANIFESTS, *choice))
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all(volume.keys() & {"emptyDir", "persistentVolumeClaim"} for volume in spec["volumes"])
    for box in spec["containers"]:
        assert box["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert box["resources"]["requests"].keys() >= {"cpu", "memory"} <= box["resources"]["limits"].keys()


@pytest.mark.parametrize("choice", [choice for choice in ALL if choice[0] in manifests.SERVING], ids="+".join)
def test_triton_is_that_of_bin_serve(choice: tuple[str, ...]) -> None:
    box = container_of(*choice)
    assert box["image"] == container.IMAGE
    variables = plain_variables(box)
    location = variables["MODEL_REPOSITORY"]
    options = ServerOptions(
        repository=location,
        log_file=None,
        control="poll",
        exit_on_error=False,
        poll_seconds=int(variables["POLL_SECONDS"]),
        drain_seconds=30,
    )
    chosen = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
    gpu = "gpu" in choice
    assert ("nvidia.com/gpu" in box["resources"]["limits"]) is gpu
    # bin/serve leaves that out where there is a GPU.
    ours = {*server.arguments(options, location, "0.0.0.0", chosen)} - {"--allow-gpu-metrics=false"}
    assert sorted(expanded(box["args"], variables)) == sorted(
        {"tritonserver", *ours, f"--allow-gpu-metrics={str(gpu).lower()}"}
    )


def test_only_monitoring_reads_metrics_and_a_volume_needs_no_network() -> None:
    policy = one(manifests.built(MANIFESTS, "volume"), "NetworkPolicy")["spec"]
    (metrics,) = (rule for rule in policy["ingress"] if {"protocol": "TCP", "port": 8002} in rule["ports"])
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert policy["egress"] == []
    assert (
        MONITOR["spec"]["selector"]["matchLabels"]
        == one(manifests.built(MANIFESTS, "base"), "Service")["spec"]["selector"]
    )
    names = {port["name"] for port in container_of("volume")["ports"]}
    assert {endpoint["port"] for endpoint in MONITOR["spec"]["podMetricsEndpoints"]} <= names


def test_the_autoscaler_asks_for_what_the_adapter_makes_of_tritons_metric() -> None:
    (rule,) = ADAPTER["rules"]["custom"]
    scaler = one(manifests.built(MANIFESTS, "volume", "autoscaling"), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert re.fullmatch(rule["name"]["matches"], rule["seriesQuery"].partition("{")[0])


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training Job leaves in its volume."""
    folder, temporary = tmp_path_factory.mktemp("volume"), tmp_path_factory.mktemp("pods")
    box = container_of("training")
    (pod,) = pods(manifests.built(MANIFESTS, "training"))
    job = one(manifests.built(MANIFESTS, "training"), "Job")
    service = one(manifests.built(MANIFESTS, "training"), "Service")
    nodes = job["spec"]["completions"]
    address = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["parallelism"] == nodes == 2
    (port,) = ports.choose("127.0.0.1", {"port": 0}).values()
    here = {
        f"--master-addr={address}": "--master-addr=127.0.0.1",
        "--master-port=29500": f"--master-port={port}",
        "/app/bin/train": str(ROOT / "bin" / "train"),
    }
    assert here.keys() <= {*box["args"]}
    # It is not to be good.
    quickly = [
        "--epochs=2",
        "--export-format=onnx",
        "--min-test-accuracy=0",
        "--min-per-class-accuracy=0",
        "--skip-visualizations",
    ]
    started = []
    try:
        for rank in range(nodes):
            variables = {**plain_variables(box), "NODE_RANK": str(rank), "JOB_UID": "1"}
            for name, value in variables.items():
                variables[name] = expanded([value], variables)[0].replace("/zoo/", f"{folder}/")
            variables |= {"HOME": str(temporary), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
            arguments = [here.get(argument, argument) for argument in expanded(box["args"], variables)]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", *arguments, *quickly],
                    env=environment() | variables,
                    cwd=temporary,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [process.communicate(timeout=150)[0] for process in started]
    finally:
        kill_all(temporary)
        for process in started:
            process.communicate()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return folder


def test_the_job_trains_on_two_pods_and_publishes_what_the_deployment_waits_for(volume: Path) -> None:
    probe = container_of("volume")["readinessProbe"]["httpGet"]["path"]
    (name,) = repository.names(FileStore(volume / "models"))
    assert probe == f"/v2/models/{name}/ready"
    assert repository.versions(FileStore(volume / "models"), name) == [1]
    assert (volume / "runs" / "1" / "records" / "validated.json").exists()


@pytest.fixture(scope="module")
def triton(volume: Path) -> Iterator[Server]:
    """The embedded server with the Deployment's arguments, but for addresses."""
    box = container_of("volume")
    variables = plain_variables(box) | {"MODEL_REPOSITORY": str(volume / "models")}

    def arguments(options: ServerOptions, repository: str, host: str, chosen: dict[str, int]) -> list[str]:
        own = expanded(box["args"], variables)[1:]
        kept = [text for text in own if not re.match(r"--\w+-(port|address)=", text)]
        addresses = [f"--{service}-address={host}" for service in ("http", "grpc", "metrics")]
        return [*kept, *addresses, *(f"{flag}={port}" for flag, port in chosen.items())]

    options = ServerOptions(
        repository=volume / "models",
        log_file=None,
        control="poll",
        exit_on_error=False,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "arguments", arguments)
        with server.running(options) as running:
            running.wait_live(time.monotonic() + 60)
            yield running


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_probes_are_answered(triton: Server) -> None:
    box = container_of("volume")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert status(triton.http_url, box[probe]["httpGet"]["path"]) == 200, probe
    assert status(triton.http_url, "/v2/models/another/ready") == 400


def test_a_server_is_ready_by_model_where_its_health_says_otherwise(triton: Server, volume: Path) -> None:
    """Why the readiness probe asks for a model."""
    bad = volume / "models" / "bad" / "1"
    bad.mkdir(parents=True)
    good = container_of("volume")["readinessProbe"]["httpGet"]["path"]
    (bad / "model.onnx").write_bytes(b"no model")
    (bad.parent / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 1\n')
    try:
        wait_until(lambda: status(triton.http_url, "/v2/health/ready") != 200)
        assert status(triton.http_url, good) == 200
    finally:
        shutil.rmtree(bad.parent)


def test_triton_has_the_metric_that_the_adapter_reads(triton: Server, volume: Path) -> None:
    (name,) = repository.names(FileStore(volume / "models"))
    client.classify(triton.http_url, name, np.zeros((1, 1, 28, 28), dtype=np.uint8))
    (rule,) = ADAPTER["rules"]["custom"]
    series = rule["seriesQuery"].partition("{")[0]
    with urllib.request.urlopen(f"http://{triton.metrics_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert f"# TYPE {series} counter" in text
    assert re.search(rf'^{series}{{model="{name}",version="1"}} [0-9]+', text, re.MULTILINE)
