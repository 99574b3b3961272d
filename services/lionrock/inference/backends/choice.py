"""Which engine serves a model, as its settings say. Imports vLLM only in the replica that runs it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from lionrock.inference.backends.backend import EngineBackend
from lionrock.inference.backends.torch_engine import StartRunner, TorchEngine
from lionrock.inference.backends.vllm_engine import VllmEngine
from lionrock.inference.backends.vllm_options import BackendUnavailable, VllmOptions, require_vllm
from lionrock.inference.engine.engine import EngineLimits
from lionrock.inference.served_model import ServedModel, vocabulary_of
from lionrock.inference.settings import ApplicationSettings
from lionrock.modelstore.source import ModelFiles
from lionrock.planner.chips import chip


def check_backend(model: ServedModel, settings: ApplicationSettings, *, runs_here: bool) -> None:
    """Raise BackendUnavailable where a model's backend cannot serve it as configured.

    runs_here: whether the replicas run in this process's environment, so that a missing vLLM is found here; elsewhere a replica
    finds out itself.
    """
    if model.settings.backend == "vllm":
        vllm_options(model, settings)
        if runs_here:
            require_vllm(model.settings.chip)


def engine_backend(model: ServedModel, settings: ApplicationSettings, start_runner: StartRunner) -> EngineBackend:
    """Return a model's engine, not started. start_runner: how the torch backend's ranks are started."""
    if model.settings.backend == "vllm":
        return VllmEngine(vllm_options(model, settings))
    source = model.source
    vocabulary = vocabulary_of(ModelFiles(model.name, source.format, source.files, source.directory))
    return TorchEngine(_limits(model), start_runner, resume_timeout_s=settings.health.resume_timeout_s, vocabulary=vocabulary)


def vllm_options(model: ServedModel, settings: ApplicationSettings) -> VllmOptions:
    """Return what vLLM is told of a model. Raises BackendUnavailable for what it cannot do."""
    told = model.settings
    if told.collective is not None:
        raise BackendUnavailable("the vllm backend chooses its collectives itself: leave `collective` unset")
    if told.weight_quantisation != "none":
        raise BackendUnavailable("the vllm backend does not quantise what it loads: leave `weight_quantisation` unset")
    return VllmOptions(
        directory=model.source.files[0] if model.source.format == "gguf" else model.source.directory,
        config=model.config,
        plan=model.plan,
        limits=_limits(model),
        kv_cache_bytes=told.kv_cache_bytes,
        threads=told.threads_per_rank,
        enforce_eager=told.vllm.enforce_eager,
        interface=settings.ray.collective_interface if chip(told.chip).ray_resource == "CPU" else None,
        start_timeout_s=told.vllm.start_timeout_s,
        silence_s=settings.health.collective_timeout_s,
    )


def engine_name(model: ServedModel) -> str:
    """Name and version of the engine, part of every answer's identity, with what it rounds weights to and vLLM's own version."""
    name = f"lionrock-{model.settings.backend}/{_version('lionrock') or 'source'}"
    if model.settings.weight_quantisation != "none":
        name = f"{name} {model.settings.weight_quantisation}"
    if model.settings.backend == "vllm":
        plugin = chip(model.settings.chip).engine_plugin
        number = _version(plugin) if plugin is not None else None
        return name if number is None else f"{name} {plugin}/{number}"
    return name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _limits(model: ServedModel) -> EngineLimits:
    limits = model.settings.limits
    return EngineLimits(**limits.model_dump())
