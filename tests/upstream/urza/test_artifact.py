"""A kernel's blueprint: the traced graph, an honest compile report, and digests that follow the content."""

from __future__ import annotations

import functools

import msgspec
import pytest
import torch

from schemas.entry import decode_entry, encode_entry
from schemas.enums import BlueprintKind, CompileStatus
from tamiyo_stream.upstream.urza.artifact import kernel_blueprint, kernel_checksum
from tamiyo_stream.upstream.urza.catalogue import KERNELS

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def blueprint_of(name, width=16, issued_at=1, **options):
    return kernel_blueprint(BY_NAME[name], width, issued_at=issued_at, **options)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_reader_gets_what_was_built(kernel):
    blueprint = kernel_blueprint(kernel, 16, issued_at=7)
    read = decode_entry(encode_entry(blueprint, None), None).message

    assert (read.blueprint_id, read.kind, read.issued_at) == (kernel.blueprint_id, BlueprintKind.KERNEL, 7)
    assert msgspec.structs.asdict(read.descriptor) == {
        **msgspec.structs.asdict(kernel.descriptor),
        "allowed_parameters": read.descriptor.allowed_parameters,
    }
    assert read.graph.source == "fx"
    assert read.graph.parameters.parameter_id == [tunable.name for tunable in kernel.tunables]
    trainable = sum(parameter.numel() for parameter in kernel.build(16).parameters())
    assert read.graph.layers.parameter_count.sum() == trainable
    assert read.checksum == kernel_checksum(kernel.build(16))
    assert ("zero_output" in read.tags) is kernel.zero_output


def test_the_graph_is_that_of_the_module():
    graph = blueprint_of("bottleneck_adapter").graph

    assert graph.layers.layer_id == ["down", "up"]
    assert graph.layers.input_channels.tolist() == [16, 8]
    assert graph.layers.output_channels.tolist() == [8, 16]
    assert graph.activations.type == ["gelu"]
    assert (graph.adjacency.connects.source.tolist(), graph.adjacency.connects.target.tolist()) == ([0], [1])
    groups = graph.adjacency
    assert (groups.tunes, groups.configures, groups.modulates) == (None, None, None)  # a kernel has no optimizer
    weights = BY_NAME["bottleneck_adapter"].build(16)
    down = torch.cat([weights.down.weight.flatten(), weights.down.bias]).norm().item()
    assert graph.layers.weight_norm.tolist() == pytest.approx([down, 0.0])


def test_a_kernel_without_weights_has_an_empty_graph():
    assert blueprint_of("identity").graph.layers.layer_id == []


def test_an_eager_kernel_says_so():
    compiled = blueprint_of("gelu_mlp").compiled

    assert compiled.status is CompileStatus.EAGER
    assert compiled.prewarm_ms > 0.0
    assert compiled.compile_ms is None


def test_a_compiled_kernel_shows_what_compilation_took():
    compiled = blueprint_of("gelu_mlp", compiler=functools.partial(torch.compile, backend="eager")).compiled

    assert compiled.status is CompileStatus.COMPILED
    assert compiled.compile_ms > 0.0


def test_a_kernel_that_does_not_compile_says_so():
    def refuses(module):
        raise RuntimeError("no compiler")

    compiled = blueprint_of("gelu_mlp", compiler=refuses).compiled

    assert compiled.status is CompileStatus.FAILED
    assert compiled.compile_ms is None


def test_the_version_follows_the_content_alone():
    first, later = blueprint_of("gelu_mlp", issued_at=1), blueprint_of("gelu_mlp", issued_at=2)
    wider, other = blueprint_of("gelu_mlp", width=32), blueprint_of("dropout_mlp")

    assert first.blueprint_version == later.blueprint_version
    assert len({first.blueprint_version, wider.blueprint_version, other.blueprint_version}) == 3


def test_the_checksum_follows_the_weights_and_the_source():
    module = BY_NAME["gelu_mlp"].build(16)
    before = kernel_checksum(module)
    with torch.no_grad():
        module.expand.bias[0] += 1.0

    assert kernel_checksum(module) != before
    without_weights = [kernel_checksum(cls()) for cls in (torch.nn.Tanh, torch.nn.Flatten)]
    assert len(set(without_weights)) == 2


def test_making_a_blueprint_leaves_the_random_state():
    before = torch.get_rng_state()
    blueprint_of("dropout_mlp")

    assert torch.equal(torch.get_rng_state(), before)
