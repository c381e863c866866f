"""Opens parquet files, which need pyarrow; apart from what is read of them, so that little is imported."""

from pathlib import Path
from typing import Any

from victor_jax.errors import UserError


def open_parquet(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f'{file} is a parquet file: pip install "victor_jax[data]" to read it') from None
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a parquet file that can be read ({error}): copy it again") from None
