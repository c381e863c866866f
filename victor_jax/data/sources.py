"""Every format that rows and images come in, behind one function."""

from pathlib import Path

from victor_jax.data.images import Records
from victor_jax.data.json_rows import JsonRecords
from victor_jax.data.packed import PACK, Pack
from victor_jax.data.parquet import ParquetFiles
from victor_jax.data.webdataset import TarFiles
from victor_jax.errors import UserError
from victor_jax.files import check_file

# Formats that hold their images, by suffix. A folder of such files is one source, in the order of their names.
SELF_CONTAINED: dict[str, type[ParquetFiles] | type[TarFiles]] = {".parquet": ParquetFiles, ".tar": TarFiles}


def needs_image_folder(path: str | Path) -> bool:
    """Whether the images of this source are files of their own."""
    return not Path(path).is_dir() and Path(path).suffix not in SELF_CONTAINED


def open_source(path: str | Path, images: str | Path | None = None) -> Records:
    """The rows of a JSON list, a JSONL file, a pack, parquet or tar files, and their images.

    `images` is the folder of the images that a JSON file names.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path} does not exist: expected a .json, .jsonl, .parquet or .tar file, or a folder that "
            "victor-jax pack-data has written"
        )
    if needs_image_folder(path):
        check_file(path)
        return JsonRecords(path, Path(images) if images else None)
    if images:
        raise UserError(f"{path} holds its images: give no image folder ({images})")
    if not path.is_dir():
        check_file(path)
        return SELF_CONTAINED[path.suffix]([path])
    if not (path / PACK).exists():
        for suffix, kind in SELF_CONTAINED.items():
            if files := sorted(path.glob(f"*{suffix}")):
                for file in files:
                    check_file(file)
                return kind(files)
    return Pack(path)


def stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of a source: equal where its data is."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
