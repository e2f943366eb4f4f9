"""Runs every probe in order. Knows no probe's inside."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from cove.server.doctor import isolation_probes, kernel_probes, network_probes, program_probes, storage_probes
from cove.server.doctor.report import Line, Report, missing
from cove.server.setup.settings import SetupSettings

Probe = Callable[[SetupSettings], Line]

# Readable by anyone.
OPEN_PROBES: Final[tuple[Probe, ...]] = (
    kernel_probes.probe_kernel,
    kernel_probes.probe_rights,
    storage_probes.probe_memory,
    storage_probes.probe_disk,
)
# Only root can try these, and only root can read the data directory.
ROOT_PROBES: Final[tuple[Probe, ...]] = (
    kernel_probes.probe_open_files,
    kernel_probes.probe_cgroups,
    kernel_probes.probe_user_namespaces,
    kernel_probes.probe_idmapped_mounts,
    kernel_probes.probe_seccomp,
    storage_probes.probe_loop_devices,
    storage_probes.probe_disk_limits,
    network_probes.probe_network,
    network_probes.probe_forwarding,
    network_probes.probe_resolvers,
    program_probes.probe_runc,
    program_probes.probe_crun,
    program_probes.probe_runsc,
    program_probes.probe_criu,
    kernel_probes.probe_kvm,
    program_probes.probe_agent,
    program_probes.probe_images,
    program_probes.probe_code,
    program_probes.probe_skopeo,
    isolation_probes.probe_isolation,
    program_probes.probe_server,
)


def examine(settings: SetupSettings) -> Report:
    """Look at everything. Blocks, for some seconds; nothing of it is left afterwards, also when it is interrupted.

    Call it from a process with one thread: probes fork (see `trial`).
    """
    probes = (*OPEN_PROBES, *ROOT_PROBES) if os.geteuid() == 0 else OPEN_PROBES
    return Report(lines=tuple(_judge(probe, settings) for probe in probes))


def _judge(probe: Probe, settings: SetupSettings) -> Line:
    """A probe that fails itself is a finding, never the end of the report."""
    try:
        return probe(settings)
    except (OSError, ValueError, KeyError) as error:
        name = probe.__name__.removeprefix("probe_").replace("_", " ")
        return missing(name, f"could not be examined: {error}", cost="unknown", cure="report this with its text")
