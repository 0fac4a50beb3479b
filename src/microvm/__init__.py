"""Declare, build and run MicroVMs: the public interface; the command line is a client of it."""

import importlib

_HOME = {
    "ApiError": "errors",
    "CommandFailed": "errors",
    "DeadlineExceeded": "errors",
    "HostError": "errors",
    "MicroVMError": "errors",
    "Problem": "errors",
    "SpecError": "errors",
    "StateError": "errors",
    "UnsupportedOperation": "errors",
    "MicroVM": "model.declaration",
    "HypervisorKind": "model.declaration",
    "Device": "model.devices",
    "Endpoint": "model.devices",
    "ForwardPort": "model.devices",
    "Graphics": "model.devices",
    "Interface": "model.devices",
    "MacvtapOptions": "model.devices",
    "PcieRootPort": "model.devices",
    "QemuDeviceOptions": "model.devices",
    "Share": "model.devices",
    "TapOptions": "model.devices",
    "Volume": "model.devices",
    "Vsock": "model.devices",
    "VsockSsh": "model.devices",
    "CloudHypervisorOptions": "model.options",
    "CrosvmOptions": "model.options",
    "FirecrackerOptions": "model.options",
    "KvmtoolOptions": "model.options",
    "QemuOptions": "model.options",
    "VirtiofsdOptions": "model.options",
    "DebianSystem": "model.system",
    "File": "model.system",
    "Repository": "model.system",
    "Unit": "model.system",
    "User": "model.system",
    "GuestSystem": "model.guest",
    "SystemLock": "model.guest",
    "Facts": "model.facts",
    "Finding": "launch.doctor",
    "examine": "launch.doctor",
    "LaunchPlan": "model.plan",
    "Runner": "model.runner",
    "Event": "model.progress",
    "Progress": "model.progress",
    "silent": "model.progress",
    "Store": "store",
    "Installed": "store.programs",
    "ProgramPlace": "store.programs",
    "Release": "store.programs",
    "find_hypervisor": "store.programs",
    "find_hypervisors": "store.programs",
    "install_hypervisor": "store.programs",
    "remove_hypervisor": "store.programs",
    "Options": "launch.foreground",
    "Outcome": "launch.foreground",
    "Project": "projects.project",
    "load": "projects.project",
    "Change": "projects.lockfile",
    "LockResult": "projects.build",
    "build": "projects.build",
    "check": "projects.build",
    "check_host": "projects.build",
    "lock": "projects.build",
    "plan": "projects.build",
    "run": "projects.build",
    "schema": "projects.schema",
    "init": "projects.init",
}

__version__ = "0.1.0"
__all__ = [*sorted(_HOME)]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'microvm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"microvm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOME))
