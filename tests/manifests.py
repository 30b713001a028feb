"""Whether a cluster would take the manifests in deploy/kubernetes: each, put together, against Kubernetes' own schemas.

`bin/check` runs it. Kustomize is no Python package; the little of it that these files use is done here, the rest is
refused, and a test compares with kubectl where there is one.
"""

import sys
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

Resource = dict[str, Any]

MANIFESTS = Path(__file__).parent.parent / "deploy" / "kubernetes"
# What people apply, and what they may add to each of the first two.
SERVING, OTHERS, COMPONENTS = ("bucket", "volume"), ("publisher", "pull", "training"), ("autoscaling", "gpu")
# The oldest has what the Job needs, the newest is the newest that the schemas are there for.
VERSIONS = ("1.27", kubernetes_validate.latest_version())

_KUSTOMIZATION = "kustomization.yaml"
# Not in Kubernetes' schemas: for the Prometheus operator and for a Helm chart.
_FOREIGN = "prometheus"
_FIELDS = {"apiVersion", "kind", "resources", "patches"}
# Lists that a patch adds to, by what tells their entries apart; it replaces all others.
_MERGED_BY = {"containers": "name", "env": "name", "volumeMounts": "mountPath", "volumes": "name"}


class ManifestError(Exception):
    """What is wrong, beginning with the file."""


def choices() -> list[tuple[str, ...]]:
    """All that can be applied: a folder, then components."""
    subsets = chain.from_iterable(combinations(COMPONENTS, size) for size in range(len(COMPONENTS) + 1))
    return [(folder, *more) for more in subsets for folder in SERVING] + [(folder,) for folder in OTHERS]


def built(root: Path, *folders: str) -> list[Resource]:
    """The resources of a folder below `root`, with components. ManifestError where kustomize would give up."""
    resources: list[Resource] = []
    for folder in folders:
        for path, entry in _entries(root / folder):
            if path.is_dir():
                resources += built(root, path.resolve().relative_to(root.resolve()).as_posix())
            elif entry == "resources":
                resources += _documents(path)
            else:
                _patch(resources, path)
    return resources


def problems(root: Path) -> Iterator[str]:
    """One line each; nothing where all is well. What is in several choices is said of the first."""
    try:
        used = {path.resolve() for file in root.rglob(_KUSTOMIZATION) for path, _ in _entries(file.parent)}
    except ManifestError as error:
        yield str(error)
        return
    for path in sorted(root.rglob("*.yaml")):
        if path.name != _KUSTOMIZATION and path.parent.name != _FOREIGN and path.resolve() not in used:
            yield f"{path.relative_to(root)}: no {_KUSTOMIZATION} names it"
    seen: list[Resource] = []
    for choice in choices():
        try:
            resources = [resource for resource in built(root, *choice) if resource not in seen]
        except ManifestError as error:
            yield f"{' + '.join(choice)}: {error}"
            continue
        seen += resources
        for resource in resources:
            for problem in _against_schemas(resource):
                yield f"{' + '.join(choice)}: {resource['kind']} {resource['metadata']['name']}: {problem}"


def _entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files and folders that a kustomization names, and under which field: resources before patches."""
    (kustomization,) = _documents(folder / _KUSTOMIZATION)
    if unknown := kustomization.keys() - _FIELDS:
        raise ManifestError(f"{folder / _KUSTOMIZATION}: {', '.join(sorted(unknown))} is not known to {__file__}")
    for name in kustomization.get("resources", ()):
        yield folder / name, "resources"
    for patch in kustomization.get("patches", ()):
        yield folder / patch["path"], "patches"


def _documents(path: Path) -> list[Resource]:
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ManifestError(f"{path}: {' '.join(str(error).split())}") from None


def _patch(resources: list[Resource], path: Path) -> None:
    (patch,) = _documents(path)
    for number, resource in enumerate(resources):
        if _identity(resource) == _identity(patch):
            resources[number] = _merged(resource, patch)
            return
    raise ManifestError(f"{path}: there is no {' '.join(_identity(patch))} to patch")


def _identity(resource: Resource) -> tuple[str, str, str]:
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def _merged(value: Any, patch: Any, field: str = "") -> Any:
    if isinstance(value, dict) and isinstance(patch, dict):
        both = {**value, **{key: _merged(value.get(key), wanted, key) for key, wanted in patch.items()}}
        return {key: wanted for key, wanted in both.items() if wanted is not None}
    if isinstance(value, list) and field in _MERGED_BY:
        key = _MERGED_BY[field]
        known = {entry[key]: entry for entry in value}
        new = {entry[key]: _merged(known.get(entry[key]), entry) for entry in patch}
        return [*({**known, **new}.values())]
    return patch


def _against_schemas(resource: Resource) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield str(error.message)


if __name__ == "__main__":
    found = [*problems(MANIFESTS)]
    print("\n".join(found) or "all manifests are valid")
    sys.exit(1 if found else 0)
