"""Options of the engine ``"ray"``: the workers, what each reserves, and whether the cluster has room for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sightline.data.indexing import Sources, list_of_sources
from sightline.data.sources.listing import SourceListing
from sightline.distributed import ray_cluster
from sightline.errors import UsageError, plural, suggest

ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The workers that train, and their cluster.

    Attributes:
        num_workers: The number of workers.
        address: The cluster, as in `ray_cluster.connect`.
        cpus_per_worker: The number of CPUs that each worker reserves.
        devices: The number of GPUs that each reserves, 0 for all of a node, if the cluster has any.
    """

    num_workers: int = 1
    address: str | None = None
    cpus_per_worker: int = 1
    devices: int = 1

    def count_resources(self, ray: Any) -> dict[str, int]:
        """Return what a worker reserves on the connected cluster."""
        counts = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
        gpus = min((count for count in counts if count), default=0)
        return {"CPU": self.cpus_per_worker} | ({"GPU": self.devices or gpus} if gpus else {})

    def describe(self, ray: Any) -> str:
        """Return the workers and what each reserves as text."""
        resources = " and ".join(f"{count} {name}" for name, count in self.count_resources(ray).items())
        return f"{plural(self.num_workers, 'worker')} with {resources} each"


def resolve_engine(
    engine: str,
    *,
    num_workers: int | None = None,
    cpus_per_worker: int | None = None,
    ray_address: str | None,
    devices: int | None = None,
    others: Mapping[str, object] = MappingProxyType({}),
) -> RayOptions | None:
    """Return the options of the engine ``"ray"``; None for ``"local"``, which has none.

    `others` are options that do not go with Ray. Raises `UsageError` for options that do not belong together.
    """
    if engine not in ENGINES:
        raise UsageError(f"There is no engine {engine!r}.{suggest(engine, ENGINES)}")
    numbers = {"--num-workers": num_workers, "--cpus-per-worker": cpus_per_worker}
    unfit = others if engine == "ray" else {**numbers, "--ray-address": ray_address}
    for name, value in unfit.items():
        if value is not None:
            advice = "leave it out: Ray places the hosts" if engine == "ray" else "add --engine ray"
            raise UsageError(f"{name} cannot be combined with --engine {engine}: {advice}.")
    if engine == "local":
        return None
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} cannot be {number}: expected 1 or more.")
    return RayOptions(num_workers or 1, ray_address, cpus_per_worker or 1, 1 if devices is None else devices)


def check_sources(sources: Sources) -> None:
    """Raise `UsageError` for images in memory, which are not sent to the workers."""
    if any(isinstance(source, SourceListing) for source in list_of_sources(sources)):
        raise UsageError(
            "Images in memory are not sent to the workers of a Ray cluster: give a folder or a file of them."
        )


def check_room(ray: Any, options: RayOptions) -> None:
    """Raise `UsageError` if a cluster started here is too small for all workers; other clusters may still grow."""
    is_own = ray_cluster.choose_address(options.address) == "local"
    total, bundle = ray.cluster_resources(), options.count_resources(ray)
    if is_own and any(total.get(name, 0) < options.num_workers * count for name, count in bundle.items()):
        raise make_room_error(ray, options)


def has_node(ray: Any, options: RayOptions) -> bool:
    """Return whether any node of the cluster, if idle, would have room for a worker."""
    bundle, nodes = options.count_resources(ray), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(name, 0) >= count for name, count in bundle.items()) for node in nodes)


def make_room_error(ray: Any, options: RayOptions) -> UsageError:
    """Return the error for a cluster that is too small."""
    total = ray.cluster_resources()
    available = ", ".join(f"{int(total.get(name, 0))} {name}" for name in options.count_resources(ray))
    return UsageError(
        f"The Ray cluster has no room for {options.describe(ray)}; it has {available} in all: ask for less with "
        "--num-workers or --cpus-per-worker, or add nodes."
    )
