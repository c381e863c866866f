"""What follows from the settings and the devices before anything is read."""

import jax
import pytest
from small_run import config_of

from victor_jax.errors import UserError
from victor_jax.training import settings
from victor_jax.training.setup import mesh_of, parts_of


def chosen(**changes):
    return settings.read(config_of({key.replace("__", "."): value for key, value in changes.items()}))


@pytest.mark.parametrize(
    ("batch", "devices", "parts"),
    [(128, 1, 8), (256, 1, 16), (128, 8, 1), (256, 8, 2), (128, 64, 1), (8, 1, 1), (96, 2, 3), (34, 1, 17)],
)
def test_a_batch_has_the_fewest_parts_of_at_most_16_rows_on_each_device(batch, devices, parts):
    assert parts_of(chosen(batch_size=batch), devices) == parts
    assert parts_of(chosen(batch_size=batch, micro_batches=2), devices=1) == 2


@pytest.mark.parametrize(("batch", "micro_batches", "devices"), [(12, 0, 8), (128, 4, 64)])
def test_rows_that_do_not_divide_over_the_devices_are_an_error(batch, micro_batches, devices):
    with pytest.raises(UserError, match=f"config.batch_size={batch} in .* do not divide over .*{devices} devices"):
        parts_of(chosen(batch_size=batch, micro_batches=micro_batches), devices)


@pytest.mark.parametrize(
    ("micro_batches", "shape"), [(0, (1, 8, 1)), (1, (1, 8, 1)), (2, (1, 8, 1)), (8, (1, 2, 4)), (16, (1, 1, 8))]
)
def test_the_mesh_spreads_the_rows_of_a_part_and_then_the_matrices(micro_batches, shape):
    open_mesh = {"mesh__data": 1, "mesh__fsdp": -1, "mesh__tensor": -1}
    mesh = mesh_of(chosen(batch_size=16, micro_batches=micro_batches, **open_mesh), jax.devices())
    assert tuple(mesh.shape.values()) == shape
